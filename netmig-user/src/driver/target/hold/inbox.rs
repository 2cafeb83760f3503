//! What has come to the target's hold: from the source, and directly.
use std::{collections::VecDeque, path::PathBuf};

use anyhow::{Context, Result, bail};
use netmig_common::Protocol;
use netmig_core::frame::{Frame, Held, HoldBegin, HoldDone, HoldMark, HoldPoint};

use super::super::super::hold::Store;
use crate::gate::hold::{Counts, Limit, Packet, Queue};

/// The largest hold that a source may ask for, in bytes.
const LARGEST: u64 = 16 << 30;

/// What has come and is not delivered.
pub(super) struct Inbox {
    /// From the source, in its order.
    pub(super) shipped: Queue,
    /// To this host.
    pub(super) direct: VecDeque<(u16, Packet)>,
    /// Which connection is the last; an earlier one counts no more.
    pub(super) connection: u64,
    /// The source has opened one.
    pub(super) begun: Option<HoldBegin>,
    /// What came to the source before it heard of the announcement is here.
    pub(super) announced: bool,
    /// Nothing more comes from the source.
    pub(super) ended: bool,
    /// The opening has begun.
    pub(super) open: bool,
    /// The announcement is out and not told to the source yet.
    pub(super) to_say: bool,
    /// Everything that has come is delivered.
    pub(super) idle: bool,
    pub(super) done: HoldDone,
    /// Where TCP packets are stored for another agent, until the opening.
    file: PathBuf,
    store: Option<Store>,
    /// How many are stored, if the source is to hear it.
    stored: Option<u64>,
}

impl Inbox {
    /// Nothing yet; what comes is stored in `file`.
    pub(super) fn new(file: PathBuf) -> Self {
        Self {
            shipped: Queue::new(Limit::of_bytes(0)),
            direct: VecDeque::new(),
            connection: 0,
            begun: None,
            announced: false,
            ended: false,
            open: false,
            to_say: false,
            idle: false,
            done: HoldDone::default(),
            file,
            store: None,
            stored: None,
        }
    }

    /// A new connection: the source sends everything from the first packet on.
    pub(super) fn connect(&mut self) -> Result<u64> {
        if self.open {
            bail!("it came after the opening");
        }
        self.connection += 1;
        self.begun = None;
        self.done = HoldDone::default();
        self.stored = None;
        let file = &self.file;
        self.store =
            Some(Store::create(file).with_context(|| format!("making {}", file.display()))?);
        Ok(self.connection)
    }

    /// Takes a frame of that connection.
    pub(super) fn take(&mut self, connection: u64, frame: Frame) -> Result<()> {
        if connection != self.connection {
            bail!("the source has opened another one");
        }
        match frame {
            Frame::HoldBegin(begin) if self.begun.is_none() => {
                if begin.limit > LARGEST {
                    bail!("the source asks for a hold of {} bytes", begin.limit);
                }
                self.shipped = Queue::new(Limit::of_bytes(begin.limit));
                self.begun = Some(begin);
                self.stored = Some(0);
            }
            Frame::Held(held) if self.begun.is_some() && !self.ended => self.hold(held)?,
            Frame::HoldMark(mark) => self.mark(mark)?,
            _ => bail!("a frame that does not belong here on the connection for held packets"),
        }
        Ok(())
    }

    fn hold(&mut self, held: Held) -> Result<()> {
        let mut tcp = Vec::new();
        let mut whole = true;
        for packet in held.packets {
            self.done.received += 1;
            let link = packet.link;
            let packet = Packet::from_bytes(packet.data).context("a held packet")?;
            if packet.parse().protocol == Protocol::Tcp {
                tcp.push((link, packet.clone()));
            }
            whole &= self.shipped.push(link, packet);
        }
        if let Some(store) = self.store.as_mut().filter(|_| whole && !self.open) {
            store
                .append(&tcp)
                .with_context(|| format!("writing {}", self.file.display()))?;
            self.stored = Some(self.done.received);
        } else {
            // What comes behind a gap, or when it is too late, is not said to be stored.
            self.store = None;
        }
        Ok(())
    }

    fn mark(&mut self, mark: HoldMark) -> Result<()> {
        if mark.packets != self.done.received {
            bail!(
                "the source has sent {} packets, {} came",
                mark.packets,
                self.done.received
            );
        }
        match mark.point {
            HoldPoint::Announced => self.announced = true,
            HoldPoint::Ended => (self.announced, self.ended) = (true, true),
            HoldPoint::Stored => bail!("a mark that only a target sets"),
        }
        Ok(())
    }

    /// What the source should hear now.
    pub(super) fn say(&mut self, connection: u64) -> Option<Frame> {
        if connection != self.connection {
            return None;
        }
        if std::mem::take(&mut self.to_say) {
            return Some(Frame::HoldMark(HoldMark {
                point: HoldPoint::Announced,
                packets: 0,
            }));
        }
        if let Some(packets) = self.stored.take() {
            return Some(Frame::HoldMark(HoldMark {
                point: HoldPoint::Stored,
                packets,
            }));
        }
        (self.ended && self.idle && self.shipped.is_empty()).then_some(Frame::HoldDone(self.done))
    }

    /// What the delivery could not put in.
    pub(super) fn dropped(&mut self, delivery: Counts) {
        let (full, failed) = (self.shipped.dropped().four(), delivery.four());
        self.done.dropped = std::array::from_fn(|n| full[n] + failed[n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use netmig_core::frame::HeldPacket;

    fn held(packets: usize, length: usize) -> Frame {
        let packet = HeldPacket {
            link: 1,
            data: Bytes::from(vec![0; length]),
        };
        Frame::Held(Held {
            packets: vec![packet; packets],
        })
    }

    fn begin(limit: u64) -> Frame {
        Frame::HoldBegin(HoldBegin {
            limit,
            barrier_us: 20_000,
        })
    }

    fn mark(point: HoldPoint, packets: u64) -> Frame {
        Frame::HoldMark(HoldMark { point, packets })
    }

    #[test]
    fn a_second_connection_begins_anew_before_the_opening_alone() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut inbox = Inbox::new(directory.path().join("owned"));
        let first = inbox.connect()?;
        inbox.take(first, begin(1 << 20))?;
        inbox.take(first, held(5, 100))?;
        let second = inbox.connect()?;
        assert!(inbox.take(first, held(1, 100)).is_err());
        inbox.take(second, begin(1 << 20))?;
        inbox.take(second, held(7, 100))?;
        assert_eq!((inbox.shipped.len(), inbox.done.received), (7, 7));
        inbox.open = true;
        assert!(inbox.connect().is_err());
        Ok(())
    }

    #[test]
    fn what_is_out_of_order_is_refused() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut inbox = Inbox::new(directory.path().join("owned"));
        let only = inbox.connect()?;
        assert!(inbox.take(only, held(1, 100)).is_err(), "not begun");
        assert!(inbox.take(only, begin(u64::MAX)).is_err(), "too large");
        inbox.take(only, begin(1 << 20))?;
        assert!(inbox.take(only, begin(1 << 20)).is_err(), "twice");
        assert!(inbox.take(only, held(1, 10)).is_err(), "no packet");
        inbox.take(only, held(2, 100))?;
        assert!(
            inbox.take(only, mark(HoldPoint::Announced, 2)).is_err(),
            "one was refused and counts as come"
        );
        Ok(())
    }

    #[test]
    fn what_is_told_to_be_stored_is_in_the_file() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("owned");
        let mut segment = vec![0; 10];
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 1], [192, 0, 2, 10], 64)
            .tcp(1, 2, 3, 4)
            .write(&mut segment, b"promised")?;
        let segment = HeldPacket {
            link: 7,
            data: segment.into(),
        };
        let both = || {
            let other = HeldPacket {
                link: 1,
                data: vec![0; 100].into(),
            };
            Frame::Held(Held {
                packets: vec![other, segment.clone()],
            })
        };
        let mut inbox = Inbox::new(file.clone());
        let first = inbox.connect()?;
        inbox.take(first, begin(400))?;
        assert_eq!(inbox.say(first), Some(mark(HoldPoint::Stored, 0)));
        inbox.take(first, both())?;
        assert_eq!(inbox.say(first), Some(mark(HoldPoint::Stored, 2)));
        let stored = Store::read(&file)?;
        assert_eq!(stored.len(), 1, "datagrams are promised to nobody");
        assert_eq!(
            (stored[0].0, stored[0].1.to_bytes()),
            (7, segment.data.clone())
        );
        let second = inbox.connect()?;
        assert!(Store::read(&file)?.is_empty(), "everything comes once more");
        inbox.take(second, begin(400))?;
        inbox.take(second, both())?;
        inbox.take(second, both())?;
        assert_eq!(inbox.say(second), Some(mark(HoldPoint::Stored, 4)));
        inbox.take(second, both())?;
        assert_eq!(inbox.say(second), None, "one did not fit");
        inbox.take(second, held(0, 0))?;
        assert_eq!(inbox.say(second), None, "nor is what comes behind it");
        Ok(())
    }

    #[test]
    fn the_account_waits_for_the_end_and_the_delivery() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut inbox = Inbox::new(directory.path().join("owned"));
        let only = inbox.connect()?;
        inbox.take(only, begin(250))?;
        inbox.take(only, held(2, 100))?;
        assert_eq!(inbox.say(only), Some(mark(HoldPoint::Stored, 2)));
        inbox.take(only, held(1, 100))?;
        inbox.to_say = true;
        assert_eq!(inbox.say(only), Some(mark(HoldPoint::Announced, 0)));
        inbox.take(only, mark(HoldPoint::Announced, 3))?;
        assert!(inbox.announced && inbox.say(only).is_none());
        inbox.take(only, mark(HoldPoint::Ended, 3))?;
        inbox.idle = true;
        assert_eq!(inbox.say(only), None, "two are not delivered");
        while inbox.shipped.pop().is_some() {}
        inbox.dropped(Counts::default());
        let Some(Frame::HoldDone(done)) = inbox.say(only) else {
            bail!("no account");
        };
        assert_eq!((done.received, done.dropped), (3, [0, 0, 0, 1]));
        Ok(())
    }
}
