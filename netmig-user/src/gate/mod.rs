//! The gate: the eBPF programs at a container's links and at its `lo`, and the maps that steer them.
//!
//! One [`Gate`] stands at one end of one move. All of it is pinned in one directory on a bpffs, so that it outlives the process:
//!
//! | pin | what |
//! |---|---|
//! | `gate` | symbolic link; its target says which layout, move and side ([`record`]) |
//! | `MODE` `SETTINGS` `TALLIES` `HOLDS` `ORDER` `HINTS` `FLOWS` `KEPT` | the maps |
//! | `netmig_inbound` `netmig_outbound` `netmig_loopback` `netmig_answer` | the programs |
//! | `at_N` | symbolic link; its target is the record of the N-th point ([`record`]), written before anything is attached there |
//! | `at_N_inbound` ... | TCX links |
//!
//! A mode holds for all points at once: it is one atomic write to one word ([`word`]).
mod answerer;
mod attachment;
mod drain;
mod error;
pub mod hold;
pub mod keeper;
#[cfg(feature = "aya-log")]
mod log;
mod netlink;
mod object;
mod record;
mod shared;
pub mod status;
#[cfg(test)]
pub(crate) mod tests;
mod word;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

pub use answerer::{Answerer, Standing};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
pub use drain::{Drained, FlowScales, Progress};
pub use error::{Error, Step};
use netmig_common::{
    Counters, FlowHint, FlowKey, FlowState, Mode, ModeWord, Settings, Side, Tally,
};
use netmig_core::id::{Epoch, MoveId};
pub use record::{Orientation, Point};

use self::{attachment::Via, record::Record, shared::Shared, word::Word};

/// The gate of one end of a move. Dropping it closes descriptors and nothing else: what is pinned stays attached.
pub struct Gate {
    mv: MoveId,
    side: Side,
    pins: PathBuf,
    word: Arc<Word>,
    order: Arc<Shared>,
    settings: Mutex<Array<MapData, Settings>>,
    tallies: PerCpuArray<MapData, Tally>,
    holds: Mutex<HashMap<MapData, u32, u32>>,
    hints: Mutex<HashMap<MapData, FlowKey, FlowHint>>,
    flows: HashMap<MapData, FlowKey, FlowState>,
    records: Vec<Record>,
}

/// A gate's lease, in a handle that outlives the borrow of its gate.
pub struct Lease(Arc<Word>);

impl Lease {
    /// Begins it anew. Nothing to do in `Pass` and `Granted`.
    ///
    /// # Errors
    /// [`Error::Expired`], [`Error::Stale`].
    pub fn renew(&self, epoch: Epoch, lease: Duration) -> Result<(), Error> {
        self.0.renew(epoch, lease)
    }
}

impl Gate {
    /// Loads the programs, pins everything in the directory `pins` (made here, on a bpffs), sets the mode and only then attaches to all
    /// `points`. On an error nothing is left.
    ///
    /// # Errors
    /// [`Error::Exists`] if the directory is there already; what the kernel refuses, with device and step.
    pub fn attach(
        mv: MoveId,
        side: Side,
        mode: Mode,
        epoch: Epoch,
        points: &[Point],
        pins: &Path,
    ) -> Result<Self, Error> {
        Self::attach_via(mv, side, mode, epoch, points, pins, Via::Best)
    }

    fn attach_via(
        mv: MoveId,
        side: Side,
        mode: Mode,
        epoch: Epoch,
        points: &[Point],
        pins: &Path,
        via: Via,
    ) -> Result<Self, Error> {
        object::create_directory(pins)?;
        let attached = (|| {
            object::load(pins)?;
            record::write_identity(pins, mv, side)?;
            let mut gate = Self::open(mv, side, pins)?;
            gate.word.start(mode, side, epoch)?;
            for point in points {
                gate.add_via(point, via)?;
            }
            #[cfg(feature = "aya-log")]
            gate.tell_log();
            Ok(gate)
        })();
        if attached.is_err() {
            for left in clear(pins) {
                tracing::warn!(%left, "undoing an attach that failed");
            }
        }
        attached
    }

    /// Attaches to one more point: a link that appeared later. The mode holds there from the first packet on.
    ///
    /// # Errors
    /// What the kernel refuses, with device and step; then nothing is left at this point.
    pub fn add(&mut self, point: &Point) -> Result<(), Error> {
        self.add_via(point, Via::Best)
    }

    fn add_via(&mut self, point: &Point, via: Via) -> Result<(), Error> {
        let number = self.records.iter().map(|r| r.number + 1).max().unwrap_or(0);
        let record = attachment::attach(self.mv, &self.pins, number, point, via)?;
        self.records.push(record);
        Ok(())
    }

    /// Takes up a gate that another process left pinned.
    ///
    /// # Errors
    /// [`Error::Absent`] if nothing is pinned there, [`Error::OtherMove`], [`Error::Layout`] if another version pinned it.
    pub fn reopen(mv: MoveId, pins: &Path) -> Result<Self, Error> {
        let identity = record::read_identity(pins)?;
        if identity.mv != mv {
            return Err(Error::OtherMove {
                pins: pins.to_owned(),
                found: identity.mv,
                expected: mv,
            });
        }
        let mut gate = Self::open(mv, identity.side, pins)?;
        gate.records = record::read_all(pins)?;
        Ok(gate)
    }

    fn open(mv: MoveId, side: Side, pins: &Path) -> Result<Self, Error> {
        Ok(Self {
            mv,
            side,
            pins: pins.to_owned(),
            word: Arc::new(Word::map(&object::map_data(pins, "MODE")?)?),
            order: Arc::new(Shared::map(&object::map_data(pins, "ORDER")?, 3)?),
            settings: Mutex::new(object::map(pins, "SETTINGS")?),
            tallies: object::map(pins, "TALLIES")?,
            holds: Mutex::new(object::map(pins, "HOLDS")?),
            hints: Mutex::new(object::map(pins, "HINTS")?),
            flows: object::map(pins, "FLOWS")?,
            records: Vec::new(),
        })
    }

    /// Changes the mode at all points at once. With a `lease` (source only) the programs pass by themselves once it ends, before a grant.
    ///
    /// # Errors
    /// [`Error::Expired`] when the lease had run out and `mode` is not `Pass`; [`Error::Granted`]: only the target's word ends that
    /// ([`Gate::reclaim`]); [`Error::Stale`] if an agent of a later epoch has taken over.
    pub fn set_mode(&self, mode: Mode, epoch: Epoch, lease: Option<Duration>) -> Result<(), Error> {
        if mode == Mode::Drain && self.mode()?.mode != Mode::Drain {
            // Sequence numbers of an earlier drain are no measure of what is in flight now.
            self.set(|settings| settings.round = settings.round.wrapping_add(1))?;
        }
        if mode == Mode::Closed {
            let lease = lease.map_or(0, |lease| lease.as_millis());
            let lease_ms = u64::try_from(lease).unwrap_or(u64::MAX);
            self.set(|settings| (settings.lease_ms, settings.still_ns) = (lease_ms, 0))?;
        }
        self.word.set_mode(mode, epoch, lease)
    }

    /// Waits until no program runs any more that has read the mode before the last change: a packet that one was looking at may have
    /// passed up to here, and none afterwards. That takes 6 to 80 ms (`membarrier` is `synchronize_rcu`, under whose lock programs run):
    /// let it run beside other work, between the closing and the reading of the first socket.
    ///
    /// # Errors
    /// [`Error::Settle`] if the kernel has no such call.
    pub fn settle() -> Result<(), Error> {
        const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
        // SAFETY: no pointers.
        let rc = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) };
        if rc == 0 {
            Ok(())
        } else {
            Err(Error::Settle(std::io::Error::last_os_error()))
        }
    }

    /// The lease, for the thread that renews it: whatever else is done with the gate, that must not wait.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease(self.word.clone())
    }

    /// Compare-and-set `Closed` -> `Granted`. Once it succeeded, the source lets nothing pass again without [`Gate::reclaim`]. Done
    /// again it changes nothing.
    ///
    /// # Errors
    /// [`Error::Expired`]: the container may have spoken, the move must be given up; [`Error::Stale`]; [`Error::NotClosed`].
    pub fn grant(&self, epoch: Epoch) -> Result<(), Error> {
        self.word.grant(epoch)
    }

    /// `Granted` -> `Closed` without a lease, on the target's durable word that it never released, or the operator's that it is fenced. In
    /// any other mode it changes nothing. What follows is what follows an abort.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn reclaim(&self, epoch: Epoch) -> Result<(), Error> {
        self.word.reclaim(epoch)
    }

    /// `Closed` -> `Opening`: outbound passes at once; inbound goes on to the hold until [`Gate::done`] has counted all that was
    /// redirected, and passes from then on; and in any case after `limit`. Without a hold this is `Pass` from the first packet on.
    ///
    /// # Errors
    /// [`Error::Expired`], [`Error::Granted`], [`Error::NotClosed`], [`Error::Stale`].
    pub fn open_in_order(&self, epoch: Epoch, limit: Duration) -> Result<(), Error> {
        self.word.open(epoch, limit)
    }

    /// The mode that holds now. A lease that has run out shows as `Expired`, whether or not a packet has met it yet.
    ///
    /// # Errors
    /// [`Error::Word`] if the map holds what no version wrote.
    pub fn mode(&self) -> Result<ModeWord, Error> {
        self.word.read()
    }

    /// What was counted so far, all points and CPUs together.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counters(&self) -> Result<Counters, Error> {
        let sum = |index: u32| {
            let tallies = self.tallies.get(&index, 0).map_err(|source| Error::Map {
                map: "TALLIES",
                source,
            })?;
            Ok::<_, Error>(tallies.iter().fold(Tally::default(), |mut sum, tally| {
                sum.add(tally);
                sum
            }))
        };
        Ok(Counters {
            inbound: sum(0)?,
            outbound: sum(1)?,
            loopback: sum(2)?,
        })
    }

    /// Where the gate stands.
    pub fn points(&self) -> impl Iterator<Item = &Point> {
        self.records.iter().map(|r| &r.point)
    }

    /// Which move it belongs to.
    #[must_use]
    pub fn mv(&self) -> MoveId {
        self.mv
    }

    /// Which end of the move this is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// Takes the programs off all points and removes every pin.
    ///
    /// # Errors
    /// Goes on after an error and returns all of them. A device or namespace that is gone is none.
    pub fn detach(self) -> Result<(), Vec<Error>> {
        let pins = self.pins.clone();
        drop(self);
        let left = clear(&pins);
        if left.is_empty() { Ok(()) } else { Err(left) }
    }
}

/// Removes whatever a gate left in `pins`, also one that was half attached when its process died. Nothing there is no error.
#[must_use]
pub fn clear(pins: &Path) -> Vec<Error> {
    let mut left = Vec::new();
    match record::read_all(pins) {
        Ok(records) => {
            for record in &records {
                left.extend(attachment::detach(pins, record));
            }
        }
        Err(Error::Absent { .. }) => return left,
        Err(e) => left.push(e),
    }
    if left.is_empty() {
        left.extend(object::remove(pins));
    }
    left
}

/// Names of the gates pinned below `parent`: the directories there, one a move.
///
/// # Errors
/// If the directory is there but cannot be read.
pub fn pinned(parent: &Path) -> Result<Vec<PathBuf>, Error> {
    let at = |source| Error::Pins {
        step: Step::List,
        path: parent.to_owned(),
        source,
    };
    match fs::read_dir(parent) {
        Ok(entries) => {
            let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
            Ok(paths
                .map_err(at)?
                .into_iter()
                .filter(|p| p.is_dir())
                .collect())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(at(e)),
    }
}
