//! Faults by chance: what a long run does to a cluster, step by step.

use std::time::Duration;

use super::machine::Machine;
use super::{Sim, network::Network};

/// How likely each fault is, per step.
#[derive(Clone, Copy, Debug)]
pub struct Chances {
    pub partition: f64,
    pub cut: f64,
    pub heal: f64,
    pub crash: f64,
    pub restart: f64,
    /// Of the restarts, those after which the clock has stepped back.
    pub step_back: f64,
    pub leave: f64,
    pub freeze: f64,
    pub slow: f64,
}

impl Default for Chances {
    fn default() -> Self {
        Self {
            partition: 0.02,
            cut: 0.02,
            heal: 0.05,
            crash: 0.01,
            restart: 0.05,
            step_back: 0.1,
            leave: 0.005,
            freeze: 0.01,
            slow: 0.01,
        }
    }
}

/// A source of faults.
#[derive(Debug)]
pub struct Chaos {
    rng: fastrand::Rng,
    chances: Chances,
}

impl Chaos {
    pub fn new(seed: u64, chances: Chances) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed ^ 0xc4a0_5000), chances }
    }

    /// A network as bad as chance wants: loss up to 60 %, duplicates up to 15 %, latencies to 80 ms and jitter to 120 ms.
    pub fn network(&mut self) -> Network {
        let millis = |rng: &mut fastrand::Rng, most: u64| Duration::from_millis(rng.u64(..=most));
        let least = millis(&mut self.rng, 20);
        Network {
            latency: (least, least + millis(&mut self.rng, 60)),
            jitter: millis(&mut self.rng, 120),
            // Most networks are better than the worst.
            loss: 0.6 * self.rng.f64().powi(3),
            duplicate: 0.15 * self.rng.f64(),
            reorder: 0.1 * self.rng.f64(),
            reorder_by: Duration::from_millis(200),
            datagram_loss: 0.0,
            gossip_loss: 0.0,
        }
    }

    pub fn rng(&mut self) -> &mut fastrand::Rng {
        &mut self.rng
    }

    /// Lets faults happen, as chance wants; at least one node keeps running.
    pub fn step<M: Machine>(&mut self, sim: &mut Sim<M>, nodes: u32) {
        let chances = self.chances;
        if self.says(chances.heal) {
            sim.heal();
        }
        if self.says(chances.partition) {
            let side: Vec<u32> = (0..nodes).filter(|_| self.rng.bool()).collect();
            sim.partition(&side);
        }
        let (one, other) = (self.rng.u32(..nodes), self.rng.u32(..nodes));
        if self.says(chances.cut) {
            sim.cut(one, other);
        }
        if sim.is_running(one) {
            let is_last = sim.running().filter(|node| !sim.is_leaving(*node)).count() == 1;
            if self.says(chances.crash) && !is_last {
                return sim.crash(one);
            }
            if self.says(chances.leave) && !is_last && !sim.is_frozen(one) && !sim.is_leaving(one) {
                return sim.leave(one);
            }
            if self.says(chances.freeze) {
                sim.freeze(one, Duration::from_millis(self.rng.u64(100..20_000)));
            }
            if self.says(chances.slow) {
                sim.slow(one, Duration::from_millis(self.rng.u64(..10)));
            }
        } else if self.says(chances.restart * f64::from(nodes)) {
            let running: Vec<u32> = sim.running().collect();
            let contact = running[self.rng.usize(..running.len())];
            let may_step_back = !sim.has_stepped_back(one);
            if may_step_back && self.says(chances.step_back) {
                sim.restart_stepped_back(one, contact);
            } else {
                sim.restart(one, contact);
            }
        }
    }

    /// Ends all faults: what is down comes up again, and nothing goes wrong from now on.
    pub fn calm<M: Machine>(&mut self, sim: &mut Sim<M>, nodes: u32) {
        sim.heal();
        *sim.network() = Network::default();
        let Some(contact) = sim.running().next() else { return };
        for node in 0..nodes {
            sim.slow(node, Duration::ZERO);
            if !sim.is_running(node) {
                sim.restart(node, contact);
            }
        }
    }

    fn says(&mut self, chance: f64) -> bool {
        self.rng.f64() < chance
    }
}
