//! What the source has held, and what of it goes out next.
use netmig_common::Protocol;
use netmig_core::frame::{Frame, HELD_LIMIT, Held, HeldPacket, HoldDone, HoldMark, HoldPoint};

use super::keeping::Keeping;
use crate::gate::hold::{Counts, Limit, Packet, Queue, in_words};

/// What was held, and how far it is on its way.
pub(super) struct Kept {
    pub(super) queue: Queue,
    /// Packets read so far.
    pub(super) read: u64,
    /// Packets of the queue that went out on the present connection.
    pub(super) shipped: usize,
    /// No other connection may be opened: the target may have delivered already.
    pub(super) granted: bool,
    /// The target has opened; to be answered once what was redirected before (so many packets) is shipped.
    pub(super) announced: Option<u64>,
    /// That is answered.
    pub(super) answered: bool,
    /// Nothing more is shipped: to be said, or said.
    pub(super) ended: Ended,
    /// Delivered here: nothing is shipped any more.
    pub(super) local: bool,
    /// The connection stands.
    pub(super) up: bool,
    pub(super) account: Option<HoldDone>,
    pub(super) local_replayed: u64,
    pub(super) local_dropped: Counts,
    /// The keeper, from the first look at the sockets on.
    pub(super) keeping: Option<Keeping>,
    /// What it did, once it is gone: answers, packets owned.
    kept_before: (u64, u64),
    /// Packets that the target has stored; none until it has said that it stores any.
    pub(super) stored: Option<u64>,
}

/// Whether the end is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    No,
    ToSay,
    Said,
}

/// What is to be done for the connection.
pub(super) enum Next {
    Send(Frame),
    Wait,
    Over,
}

impl Kept {
    /// Nothing yet.
    pub(super) fn new(limit: Limit) -> Self {
        Self {
            queue: Queue::new(limit),
            read: 0,
            shipped: 0,
            granted: false,
            announced: None,
            answered: false,
            ended: Ended::No,
            local: false,
            up: false,
            account: None,
            local_replayed: 0,
            local_dropped: Counts::default(),
            keeping: None,
            kept_before: (0, 0),
            stored: None,
        }
    }

    /// A packet was read; false if it did not fit.
    pub(super) fn hold(&mut self, link: u16, packet: Packet) -> bool {
        self.read += 1;
        if !self.queue.push(link, packet.clone()) {
            return false;
        }
        // Here the queue loses nothing: its length is the place.
        let place = self.queue.len() as u64;
        // Without a target that stores it, nothing more is promised.
        if let Some(keeping) = self.keeping.as_mut().filter(|_| self.stored.is_some()) {
            keeping.take(link, &packet, place);
        }
        true
    }

    /// The keeper with all that it has promised; it promises nothing more.
    pub(super) fn end_keeping(&mut self) -> Option<Keeping> {
        let mut keeping = self.keeping.take()?;
        keeping.seal();
        self.kept_before = (keeping.answered, keeping.owned());
        Some(keeping)
    }

    /// Answers sent.
    pub(super) fn answered(&self) -> u64 {
        let now = self.keeping.as_ref().map_or(0, |k| k.answered);
        self.kept_before.0 + now
    }

    /// Packets owned.
    pub(super) fn owned(&self) -> u64 {
        let now = self.keeping.as_ref().map_or(0, Keeping::owned);
        self.kept_before.1 + now
    }

    /// The connection is gone. True if another one may be opened, on which everything goes out once more.
    pub(super) fn down(&mut self) -> bool {
        self.up = false;
        self.stored = None;
        let again = !self.granted && !self.local;
        if again {
            self.shipped = 0;
        }
        again
    }

    /// What goes out next: packets first, as many as a frame takes.
    pub(super) fn next(&mut self) -> Next {
        if self.local {
            return Next::Over;
        }
        if self.ended == Ended::Said {
            return Next::Wait;
        }
        let mut held = Held::default();
        let mut room = HELD_LIMIT;
        while let Some((link, packet)) = self.queue.get(self.shipped + held.packets.len()) {
            let needed = Held::room(packet.as_bytes());
            if needed > room {
                break;
            }
            room -= needed;
            held.packets.push(HeldPacket {
                link: *link,
                data: packet.to_bytes(),
            });
        }
        if !held.packets.is_empty() {
            self.shipped += held.packets.len();
            return Next::Send(Frame::Held(held));
        }
        let mark = |point| {
            Next::Send(Frame::HoldMark(HoldMark {
                point,
                packets: self.shipped as u64,
            }))
        };
        if self.announced.is_some_and(|before| self.read >= before) {
            (self.announced, self.answered) = (None, true);
            return mark(HoldPoint::Announced);
        }
        if self.ended == Ended::ToSay {
            self.ended = Ended::Said;
            return mark(HoldPoint::Ended);
        }
        Next::Wait
    }

    /// What became of what was shipped, as the target says, where it is not all well; and of what came later. In words.
    pub(super) fn accounted(&self) -> Vec<String> {
        let shipped = self.shipped as u64;
        let mut left = match self.account {
            None if shipped > 0 => vec![format!(
                "the target has not said how many of {shipped} held packets it has delivered"
            )],
            Some(account) => told(&account, shipped),
            None => Vec::new(),
        };
        let later = (self.shipped..self.queue.len()).filter_map(|place| self.queue.get(place));
        let mut late = Counts::default();
        for parsed in later.map(|(_, packet)| packet).filter_map(for_it) {
            late.add(parsed);
        }
        if late.total() > 0 {
            left.push(format!(
                "{late} packets came to this host when it forwarded nothing any more: TCP and those who ask again send them once more, to the target"
            ));
        }
        left
    }

    /// What did not fit, in words.
    pub(super) fn told(&self) -> Vec<String> {
        let dropped = self.queue.dropped();
        let full = (dropped.total() > 0).then(|| {
            format!("the hold was full: {dropped} packets were dropped; a larger --hold-limit keeps them")
        });
        full.into_iter().collect()
    }
}

/// The protocol of a packet that was for the container itself; none of what keeps the link going, where it does not live any more.
fn for_it(packet: &Packet) -> Option<Protocol> {
    match packet.parse().protocol {
        Protocol::Neighbour | Protocol::OtherLink => None,
        protocol => Some(protocol),
    }
}

/// What the target's account means, where it is not all well.
fn told(account: &HoldDone, sent: u64) -> Vec<String> {
    let mut told = Vec::new();
    if account.received < sent {
        told.push(format!(
            "{} of {sent} held packets did not reach the target",
            sent - account.received
        ));
    }
    if account.dropped != [0; 4] {
        told.push(format!(
            "the target dropped {} held packets",
            in_words(account.dropped)
        ));
    }
    if account.late {
        told.push("packets that came to the target were delivered before all that came to the source was there: the barrier's limit was over (--barrier-limit)".to_owned());
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(packets: usize, length: usize) -> Kept {
        let mut kept = Kept::new(Limit::default());
        for _ in 0..packets {
            let packet = Packet::from_bytes(vec![0; length]).expect("a packet");
            assert!(kept.queue.push(3, packet));
            kept.read += 1;
        }
        kept
    }

    fn sent(kept: &mut Kept) -> Vec<Frame> {
        std::iter::from_fn(|| match kept.next() {
            Next::Send(frame) => Some(frame),
            Next::Wait | Next::Over => None,
        })
        .collect()
    }

    #[test]
    fn packets_go_out_in_full_frames_and_marks_behind_them() {
        let mut kept = kept(40, 60_000);
        (kept.announced, kept.ended) = (Some(40), Ended::ToSay);
        let frames = sent(&mut kept);
        let packets: Vec<_> = frames
            .iter()
            .map(|frame| match frame {
                Frame::Held(held) => held.packets.len(),
                _ => 0,
            })
            .collect();
        assert_eq!(packets, [17, 17, 6, 0, 0]);
        let mark = |point| Frame::HoldMark(HoldMark { point, packets: 40 });
        assert_eq!(
            frames[3..],
            [mark(HoldPoint::Announced), mark(HoldPoint::Ended)]
        );
    }

    #[test]
    fn a_mark_waits_for_what_was_redirected_before_it() {
        let mut kept = kept(2, 100);
        kept.announced = Some(3);
        assert_eq!(sent(&mut kept).len(), 1, "two packets, no mark");
        let packet = Packet::from_bytes(vec![0; 50]).expect("a packet");
        assert!(kept.queue.push(3, packet));
        kept.read += 1;
        let frames = sent(&mut kept);
        assert!(
            matches!(&frames[..], [Frame::Held(_), Frame::HoldMark(mark)] if mark.packets == 3)
        );
        kept.ended = Ended::ToSay;
        assert_eq!(sent(&mut kept).len(), 1);
        let packet = Packet::from_bytes(vec![0; 50]).expect("a packet");
        assert!(kept.queue.push(3, packet));
        assert_eq!(sent(&mut kept).len(), 0, "nothing behind the end");
    }

    #[test]
    fn a_connection_that_breaks_is_opened_anew_before_the_grant_alone() {
        let mut kept = kept(2, 100);
        assert_eq!(sent(&mut kept).len(), 1);
        assert!(kept.down());
        assert_eq!(sent(&mut kept).len(), 1, "once more from the first one");
        kept.granted = true;
        assert!(!kept.down() && sent(&mut kept).is_empty());
    }

    #[test]
    fn what_is_delivered_here_is_not_shipped() {
        let mut kept = kept(2, 100);
        kept.local = true;
        assert!(matches!(kept.next(), Next::Over));
    }

    #[test]
    fn what_came_when_nothing_was_forwarded_any_more_is_said() {
        const ARP: [u8; 2] = [8, 6];
        let mut kept = kept(3, 100);
        kept.ended = Ended::ToSay;
        assert_eq!(sent(&mut kept).len(), 2);
        let account = HoldDone {
            received: 3,
            replayed: 3,
            ..HoldDone::default()
        };
        kept.account = Some(account);
        let mut comes = |frame: &[u8]| {
            // struct virtio_net_hdr is before it.
            let packet = Packet::from_bytes([&[0; 10], frame].concat()).expect("a packet");
            assert!(kept.queue.push(3, packet));
            kept.accounted()
        };
        let question = [&[0; 12][..], &ARP, &[0; 28]].concat();
        assert_eq!(comes(&question), [] as [&str; 0]);
        let mut datagram = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 1], [192, 0, 2, 10], 64)
            .udp(7, 9)
            .write(&mut datagram, b"x")
            .expect("a packet");
        let said = comes(&datagram).join("; ");
        assert!(
            said.starts_with("0 TCP, 1 UDP, 0 ICMP, 0 other packets came"),
            "{said}"
        );
    }

    #[test]
    fn an_account_that_is_all_well_says_nothing() {
        let mut account = HoldDone {
            received: 7,
            replayed: 7,
            ..HoldDone::default()
        };
        assert!(told(&account, 7).is_empty());
        assert_eq!(told(&account, 9).len(), 1);
        account.dropped = [0, 2, 0, 0];
        account.late = true;
        let told = told(&account, 7);
        assert!(told.len() == 2 && told[0].contains("2 UDP"), "{told:?}");
    }
}
