//! Arrivals at the node's door, and where members are known to be.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use super::journal::{self, link_span};
use super::peers::{self, Failure};
use super::{Entry, Farewell, Node, now};
use crate::config::Config;
use crate::error::ConnectError;
use crate::id::{HostName, NodeName};
use crate::proto::admission::{Admission, AdmissionCounters, Limits, Place, Ruling};
use crate::proto::membership::{Member, MemberEvent, MemberState};
use crate::transport::Arrival;

/// Who may begin a handshake.
#[derive(Debug)]
pub(super) struct Door {
    admission: Admission,
    /// Where each member was when it was linked last: its name may not say so. As many as there may be members.
    met: BTreeMap<NodeName, IpAddr>,
    met_max: usize,
    /// Where members may be; `None` when that is to be looked up again.
    members: Option<HashSet<IpAddr>>,
}

/// An arrival that is not up yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admitted {
    place: Place,
    from: IpAddr,
    is_proven: bool,
}

impl Door {
    pub(super) fn new(config: &Config) -> Self {
        let limits = Limits { places: config.handshakes_max, reserved: config.handshakes_reserved };
        Self { admission: Admission::new(limits), met: BTreeMap::new(), met_max: config.members_max, members: None }
    }

    pub(super) fn counters(&self) -> AdmissionCounters {
        *self.admission.counters()
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.admission.under_way()
    }

    /// Something has happened to a member.
    pub(super) fn members_changed(&mut self, event: &MemberEvent) {
        self.members = None;
        if let MemberEvent::Forgotten(life) = event {
            self.met.remove(life.name());
        }
    }

    /// A node is linked at this address.
    pub(super) fn met(&mut self, name: &NodeName, address: IpAddr) {
        if self.met.len() >= self.met_max && !self.met.contains_key(name) {
            self.met.pop_first();
        }
        if self.met.insert(name.clone(), address) != Some(address) {
            self.members = None;
        }
    }

    /// The handshake is over.
    pub(super) fn over(&mut self, admitted: Admitted) {
        self.admission.over(admitted.place);
    }

    /// Why it is: who was turned away has failed, and not who was too slow.
    pub(super) fn failed(&mut self, admitted: Admitted, failure: &Failure) {
        if matches!(failure.error, ConnectError::Auth(_) | ConnectError::Protocol) {
            // Whoever got through TLS has received what was sent to its address.
            let is_proven = admitted.is_proven || failure.code.is_some();
            self.admission.failed(admitted.from, is_proven, now());
        }
    }
}

/// Where members may be that are known, dead ones too: they may come back.
fn places(members: Vec<Member>, met: &mut BTreeMap<NodeName, IpAddr>) -> HashSet<IpAddr> {
    let known = members.into_iter().filter(|member| member.state != MemberState::Left);
    let known: BTreeMap<_, _> = known.map(|member| (member.id.name().clone(), member.addresses)).collect();
    met.retain(|name, _| known.contains_key(name));
    let named = known.keys().filter_map(|name| match name.host() {
        HostName::Ip(ip) => Some(ip),
        HostName::Dns(_) => None,
    });
    let advertised = known.values().flatten().map(|address| address.ip());
    named.chain(advertised).chain(met.values().copied()).map(|ip| ip.to_canonical()).collect()
}

impl Node {
    /// Somebody knocks.
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        if self.farewell != Farewell::No {
            return arrival.refuse();
        }
        let (from, is_proven) = (arrival.address().ip(), arrival.is_proven());
        let Door { admission, met, members, .. } = &mut self.door;
        let is_member = || {
            let places = members.get_or_insert_with(|| places(self.shared.members.snapshot(), met));
            places.contains(&from.to_canonical())
        };
        let place = match admission.arrived(from, is_proven, is_member, now()) {
            Ruling::Admit(place) => place,
            Ruling::Prove => return arrival.retry(),
            Ruling::Refuse => {
                self.shared.journal.link_refused(&arrival.address(), &"no room for another handshake");
                return arrival.refuse();
            }
            Ruling::Ignore => {
                self.shared.journal.link_refused(&arrival.address(), &"no answer: no room, or too many failures");
                return arrival.ignore();
            }
        };
        let link = self.node.accepted();
        let span = link_span(link, journal::End::From(arrival.address()));
        let task = tracing::Instrument::instrument(peers::accept(self.shared.clone(), link, arrival), span);
        let task = self.tasks.spawn(task);
        let admitted = Some(Admitted { place, from, is_proven });
        self.entries.insert(link, Entry { task: Some(task), admitted, ..Entry::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    /// Nodes that come under ever new names leave nothing behind, and are no more than there may be members.
    #[test]
    fn places_go_with_their_members() {
        let config = Config { members_max: 100, ..Config::default() };
        let mut door = Door::new(&config);
        let name = |n: usize| NodeName::parse(&format!("n{n}@h")).unwrap();
        for n in 0..1000 {
            door.met(&name(n), [10, 0, 0, 1].into());
            door.members_changed(&MemberEvent::Forgotten(NodeId::new(name(n), 1)));
        }
        assert_eq!(door.met.len(), 0);
        for n in 0..=config.members_max {
            door.met(&name(n), [10, 0, 0, 1].into());
        }
        assert_eq!(door.met.len(), config.members_max);
        assert!(door.met.contains_key(&name(config.members_max)), "the last one");
    }
}
