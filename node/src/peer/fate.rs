//! Tells a process that is gone from a connection that broke.
//!
//! A node whose process ends takes all its connections along, and its machine refuses new ones at
//! once: its followers need not wait for their timeout. One lane that breaks, an address that does
//! not answer, or a refusal long after say nothing of that kind, and must not cost a healthy leader
//! its place. So the process counts as gone only when every lane had a connection, every one of
//! them broke, and every one was refused soon after.

use std::time::{Duration, Instant};

use super::lane::PeerLane;

/// A refusal this long after the break is no sign any more: the election timeout has passed.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Default)]
enum Lane {
    #[default]
    NeverConnected,
    Connected,
    Broke {
        at: Instant,
    },
    Gone,
}

/// What is known of a peer's process.
#[derive(Default)]
pub(super) struct Fate {
    lanes: [Lane; 4],
    told: bool,
}

impl Fate {
    pub(super) fn connected(&mut self, lane: PeerLane) {
        self.lanes[lane.number()] = Lane::Connected;
        self.told = false;
    }

    pub(super) fn broke(&mut self, lane: PeerLane, at: Instant) {
        self.lanes[lane.number()] = Lane::Broke { at };
    }

    /// Whether this refusal is the one by which the process is known to be gone.
    pub(super) fn refused(&mut self, lane: PeerLane, now: Instant) -> bool {
        if let Lane::Broke { at } = self.lanes[lane.number()]
            && now.duration_since(at) <= REFUSED_WITHIN
        {
            self.lanes[lane.number()] = Lane::Gone;
        }
        let is_gone = self.lanes.iter().all(|lane| matches!(lane, Lane::Gone));
        is_gone && !std::mem::replace(&mut self.told, is_gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> Fate {
        let mut fate = Fate::default();
        PeerLane::ALL.into_iter().for_each(|lane| fate.connected(lane));
        fate
    }

    #[test]
    fn a_process_is_gone_when_all_lanes_broke_and_are_refused() {
        let (mut fate, now) = (connected(), Instant::now());
        for lane in PeerLane::ALL {
            fate.broke(lane, now);
        }
        let told = PeerLane::ALL.map(|lane| fate.refused(lane, now));
        assert_eq!(told, [false, false, false, true]);
        assert!(!fate.refused(PeerLane::Urgent, now), "it is told once");
        // It came back, and went again.
        for lane in PeerLane::ALL {
            fate.connected(lane);
            fate.broke(lane, now);
        }
        assert!(PeerLane::ALL.into_iter().any(|lane| fate.refused(lane, now)));
    }

    #[test]
    fn one_refused_lane_does_not_make_a_peer_lost() {
        let (mut fate, now) = (connected(), Instant::now());
        for lane in [PeerLane::Urgent, PeerLane::Entries, PeerLane::Bulk] {
            fate.broke(lane, now);
            assert!(!fate.refused(lane, now));
        }
        // One is still there, so they are refused for another reason.
        assert!(!fate.refused(PeerLane::Calls, now));
        fate.broke(PeerLane::Calls, now);
        fate.connected(PeerLane::Urgent);
        assert!(!fate.refused(PeerLane::Calls, now));
    }

    #[test]
    fn a_refusal_long_after_the_break_or_without_one_says_nothing() {
        let (mut never, now) = (Fate::default(), Instant::now());
        assert!(!PeerLane::ALL.into_iter().any(|lane| never.refused(lane, now)));
        let mut late = connected();
        PeerLane::ALL.into_iter().for_each(|lane| late.broke(lane, now));
        let later = now + REFUSED_WITHIN + Duration::from_millis(1);
        assert!(!PeerLane::ALL.into_iter().any(|lane| late.refused(lane, later)));
    }
}
