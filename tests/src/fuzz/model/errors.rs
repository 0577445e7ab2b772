//! ICMP errors: one that is about a flow follows it to the end that caused it, with what that end sent in it (ARCHITECTURE.md, "ICMP errors are
//! related"; SEMANTICS.md, NetworkPolicy: replies and related ICMP of an allowed connection pass and are never judged alone).
//!
//! The half of the direction that the error takes, from the quoted packet's destination back to its source, says how it is written: it goes where
//! that half's packets go; who answers for the quoted destination shows what its packets show; a router on the way shows itself. It makes, keeps and
//! closes no flow.

use agent_common::{Reason, address_kind};

use super::super::wire::{self, Ends, Quote};
use super::flows::Half;
use super::{Arrival, Deed, Expected, Model};

impl Model {
    /// What an error quotes, if it goes to whom it is about.
    fn about(at: &Arrival<'_>) -> Option<Quote> {
        wire::quoted(at.frame, &at.wire)
            .filter(|quote| quote.ends.from.ip() == at.wire.ends.to.ip())
    }

    /// A pod sends an error: it must be about what came to that pod.
    pub(super) fn error_from_pod(&mut self, at: &Arrival<'_>, here: u32) -> Expected {
        if !self.cluster.sends_as(here, at.wire.ends.from.ip()) {
            return self.drops(at, Reason::SourceSpoofed);
        }
        if let Some(quote) = Self::about(at) {
            let back = quote.ends.turned();
            match self.flows.find(&back).copied() {
                Some(half) if half.enters == at.ifindex => {
                    let holds = self.stands(&half, back.protocol, at.ifindex, here)
                        && self.backend_holds(&half, back.protocol);
                    if !holds {
                        return self.drops(at, Reason::IcmpError);
                    }
                    return self.tells(at, &quote, &half, true);
                }
                // It came to somebody else.
                Some(half) if half.enters != 0 => {
                    return self.drops(at, Reason::SourceSpoofed);
                }
                _ => {}
            }
        }
        self.unknown_from_pod(at, here, Reason::IcmpError, false)
    }

    /// An error reaches a pod: it must be about what that pod sent.
    pub(super) fn error_to_pod(&mut self, at: &Arrival<'_>, here: u32) -> Expected {
        let host = at.ingress == 0;
        let Some(quote) = Self::about(at) else {
            return self.error_of_nobody(at, here);
        };
        let protocol = quote.ends.protocol;
        // As the pod sent it: what is not translated, or was translated back where the error came in.
        let sent = self.flows.find(&quote.ends).copied().filter(|_| !host);
        // As it was behind translation: then it is to be translated back here, whoever made it.
        let answers = self
            .flows
            .find(&quote.ends.turned())
            .copied()
            .filter(|half| half.translated);
        let (own, by) = match (sent, answers) {
            (Some(own), _) => (Some(own), None),
            (None, Some(answers)) => (
                self.flows.find(&answers.partner(protocol)).copied(),
                Some(answers),
            ),
            (None, None) => (None, None),
        };
        let Some(own) = own else {
            return self.error_of_nobody(at, here);
        };
        if !host {
            if own.host && own.reply {
                return self.drops(at, Reason::SourceMartian);
            }
            if !self.stands(&own, protocol, at.ifindex, here) {
                return self.drops(at, Reason::IcmpError);
            }
        }
        match by {
            Some(answers) => self.tells(at, &quote, &answers, false),
            None => {
                self.did(at, Deed::ErrorFollowed);
                Self::passes(at)
            }
        }
    }

    /// An error that is about no flow reaches a pod.
    fn error_of_nobody(&mut self, at: &Arrival<'_>, here: u32) -> Expected {
        if at.ingress == 0 {
            return Self::passes(at);
        }
        self.unknown_to_pod(at, here, Reason::IcmpError)
    }

    /// An error comes from outside, to whom its quote says: `to_pod` judges it. What never left the node it cannot be about.
    pub(super) fn error_from_uplink(&mut self, at: &Arrival<'_>) -> Expected {
        if let Some(quote) = Self::about(at)
            && let Some(half) = self.flows.find(&quote.ends.turned()).copied()
        {
            if half.enters != 0 {
                return self.drops(at, Reason::SourceMartian);
            }
            return self.tells(at, &quote, &half, false);
        }
        if self.cluster.kind_of(at.wire.ends.to.ip()) == Some(address_kind::CLUSTER_IP) {
            return self.drops(at, Reason::ClusterIpFromOutside);
        }
        Self::passes(at)
    }

    /// Whether the flow was judged in the epoch in force: by this half, whose packets the pod at this link sends, or by the other, where what is quoted
    /// was the other's.
    fn stands(&self, half: &Half, protocol: u8, ifindex: u32, here: u32) -> bool {
        if self.judged(half, ifindex) {
            return true;
        }
        let Some(other) = self.flows.find(&half.partner(protocol)) else {
            return false;
        };
        let slot = if half.reply {
            other.responder
        } else {
            other.opener
        };
        slot == Some(here) && self.judged(other, other.enters)
    }

    /// The error goes the way of `half`. `directly`: by redirect, where the flow's packets go so.
    fn tells(&mut self, at: &Arrival<'_>, quote: &Quote, half: &Half, directly: bool) -> Expected {
        let mut out = Self::passes(at);
        if half.translated {
            let inner = Ends {
                from: half.new_to,
                to: half.new_from,
                protocol: quote.ends.protocol,
            };
            let mut outer = at.wire.ends;
            // The end itself answers, and not a router before it.
            if outer.from.ip() == quote.ends.to.ip() {
                outer.from.set_ip(half.new_from.ip());
            }
            outer.to.set_ip(half.new_to.ip());
            wire::rewrite_error(&mut out.frame, &at.wire, quote, outer, inner);
            self.did(at, Deed::ErrorTranslated);
        } else {
            self.did(at, Deed::ErrorFollowed);
        }
        if directly {
            self.redirects(at, half, &mut out);
        }
        out
    }
}
