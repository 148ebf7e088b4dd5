//! What everybody learns: who leads.

use super::{Election, Output, Time};
use crate::id::{NodeId, NodeName};
use crate::wire::services::election::{Ballot, NUMBER_MAX, Token, Word};

/// How far one word may move a term. It takes more than a hundred years of elections to get there by standing.
pub(super) const JUMP_MAX: u64 = 1 << 32;

impl Election {
    pub(super) fn token(&self, term: u64) -> Token {
        let Ballot { generation, version, .. } = self.fixed.ballot;
        Token::new(generation, version, term)
    }

    /// The greatest token that this node knows of, and whose it is, unless that leader is known to have stopped.
    #[cfg(test)]
    pub(crate) fn observed(&self) -> Option<&(Token, Option<NodeName>)> {
        self.observed.as_ref()
    }

    /// Tokens only grow, and a leader that has stopped does not lead again by the same token.
    pub(super) fn observe(&mut self, token: Token, leader: Option<NodeName>) {
        let is_news = match &self.observed {
            None => true,
            Some((known, of)) => token > *known || (token == *known && of.is_some() && leader.is_none()),
        };
        if is_news {
            self.observed = Some((token, leader.clone()));
            self.outputs.push_back(Output::Observed { token, leader });
        }
    }

    /// What is known here, to whoever asked or counts with other voters.
    pub(super) fn tell(&mut self, to: &NodeId) {
        if let Some((token, leader)) = self.observed.clone() {
            self.send_to(to.name().clone(), Word::Leads { token, leader });
        }
    }

    pub(super) fn told(&mut self, from: &NodeId, token: Token, leader: Option<NodeName>) {
        let own = self.token(0);
        let is_of = |token: Token| (token.generation(), token.version());
        let is_declared = self.fixed.voters.rank(from.name()).is_some();
        if is_of(token) == is_of(own) {
            // Strangers do not know.
            let is_good = |name: &NodeName| self.fixed.voters.rank(name).is_some();
            if !is_declared || !leader.as_ref().is_none_or(is_good) {
                self.counters.strangers += 1;
                return;
            }
            let known = self.observed.as_ref().map(|(known, _)| *known).filter(|known| is_of(*known) == is_of(own));
            if self.is_absurd(token.term(), known.map_or(self.vote.term, Token::term)) {
                return;
            }
        } else if is_of(token) < is_of(own) || token.term() > NUMBER_MAX {
            return;
        } else if !is_declared && leader.as_ref() != Some(from.name()) {
            self.counters.strangers += 1;
            return;
        }
        self.observe(token, leader);
    }

    /// Nobody gets that far by standing again and again.
    pub(super) fn is_absurd(&mut self, term: u64, known: u64) -> bool {
        // Whoever keeps its vote in memory begins at a time of day.
        let is_first = self.fixed.voters.is_diskless() && known == 0;
        let is_absurd = term > NUMBER_MAX || (!is_first && term.saturating_sub(known) > JUMP_MAX);
        self.counters.absurd += u64::from(is_absurd);
        is_absurd
    }

    /// Asks one voter after the other.
    pub(super) fn ask(&mut self, now: Time) {
        let voters = self.fixed.voters.names();
        self.asked = (self.asked + 1) % voters.len();
        let to = voters[self.asked].clone();
        self.due = Some(now + self.fixed.params.heartbeat * 2);
        self.send_to(to, Word::Ask);
    }
}
