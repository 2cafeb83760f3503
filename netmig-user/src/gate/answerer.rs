//! Frames that come in at the host's end of a container's veth as if the container had sent them: bridge, conntrack and NAT see no difference.
use std::{
    io,
    time::{Duration, Instant},
};

use aya::{
    maps::{HashMap, MapData, MapError},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use netmig_common::{FlowKey, KeptFlow};
use nix::time::{ClockId, clock_gettime};

use super::{
    Error, Gate, Orientation, Point, Step,
    object::{self, Program},
};

/// Sends them, past the closed gate of a source; from the grant on the gate drops them.
pub struct Answerer {
    program: SchedClassifier,
    /// `struct __sk_buff`, of which only `cb[0]`, the device, is not 0.
    context: [u8; 68],
    device: String,
    ifindex: u32,
    kept: HashMap<MapData, FlowKey, KeptFlow>,
}

/// What the programs are to say by themselves to the peer of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// First byte that the container has not sent.
    pub seq: u32,
    /// First byte that has not been acknowledged.
    pub ack: u32,
    /// The container's timestamp at a moment, its unit in bit 0; none without timestamps.
    pub stamp: Option<(u32, Instant)>,
    /// Bytes before `ack` are in no socket.
    pub owned: bool,
}

impl Gate {
    /// Whether pure ACKs that the container's stack sends pass the closed gate of a source: from the closing on, so that none that was
    /// delayed is missing, until the sockets are about to be dumped. Once it is off and [`Gate::settle`] has returned, nothing is acknowledged
    /// that a dump does not have.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn let_acks_pass(&self, pass: bool) -> Result<(), Error> {
        self.set(|settings| settings.acks = pass.into())
    }

    /// The container's clock as its peers see it stands from `moment` on, as long as the gate is closed.
    ///
    /// # Errors
    /// If the map cannot be written, or the clock not be read.
    pub fn stands_since(&self, moment: Instant) -> Result<(), Error> {
        let still_ns = monotonic(moment)?;
        self.set(|settings| settings.still_ns = still_ns)
    }

    /// Connections of whose peers the programs know what they were last told, also by an agent that is gone.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn told(&self) -> Result<Vec<FlowKey>, Error> {
        let kept: HashMap<MapData, FlowKey, KeptFlow> = object::map(&self.pins, "KEPT")?;
        let keys: Result<_, _> = kept.keys().collect();
        keys.map_err(|source| Error::Map {
            map: "KEPT",
            source,
        })
    }

    /// For a point of [`Orientation::HostSide`] in the caller's own namespace.
    ///
    /// # Errors
    /// [`Error::NoInjection`] at another point; a map or a program that cannot be opened.
    pub fn answerer(&self, point: &Point) -> Result<Answerer, Error> {
        if point.orientation != Orientation::HostSide || point.netns.is_some() {
            return Err(Error::NoInjection {
                device: point.name.clone(),
            });
        }
        let [a, b, c, d, ..] = self.mv.0;
        // Not 0, and random: nobody else marks packets like that.
        self.set(|settings| settings.answers = u32::from_ne_bytes([a, b, c, d]) | 1)?;
        const CB: usize = 48;
        let mut context = [0; 68];
        context[CB..CB + 4].copy_from_slice(&point.ifindex.to_ne_bytes());
        Ok(Answerer {
            program: Program::Answer.open(&self.pins)?,
            context,
            device: point.name.clone(),
            ifindex: point.ifindex,
            kept: object::map(&self.pins, "KEPT")?,
        })
    }
}

impl Answerer {
    /// Sends one frame, checksums finished.
    ///
    /// # Errors
    /// [`Error::Device`]: the kernel refuses, or the device is gone.
    pub fn send(&self, frame: &[u8]) -> Result<(), Error> {
        let failed = |source| Error::Device {
            step: Step::Answer,
            device: self.device.clone(),
            source,
        };
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&self.context),
            ..TestRunOptions::new()
        };
        let run = self.program.test_run(options);
        let run = run.map_err(|e| failed(Box::new(e)))?;
        // TC_ACT_SHOT: `bpf_clone_redirect` failed.
        if run.return_value == 2 {
            return Err(failed("the packet was not taken".into()));
        }
        Ok(())
    }

    /// From now on the programs answer probes of this peer by themselves, and, when user space is silent or the lease has run out, whatever it
    /// sends, as long as something is owned.
    ///
    /// # Errors
    /// If the map is full or cannot be written, or the clock not be read.
    pub fn keeps(&mut self, key: &FlowKey, standing: &Standing) -> Result<(), Error> {
        let (stamp, read_ns) = match standing.stamp {
            Some((stamp, read)) => (stamp, monotonic(read)?),
            None => (0, 0),
        };
        let flow = KeptFlow {
            read_ns,
            seq: standing.seq,
            ack: standing.ack,
            stamp,
            stamped: standing.stamp.is_some().into(),
            owned: standing.owned.into(),
            device: self.ifindex,
        };
        let put = self.kept.insert(key, flow, 0);
        put.map_err(|source| Error::Map {
            map: "KEPT",
            source,
        })
    }

    /// The programs answer this peer no more. One that they did not is no error.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn forgets(&mut self, key: &FlowKey) -> Result<(), Error> {
        match self.kept.remove(key) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            removed => removed.map_err(|source| Error::Map {
                map: "KEPT",
                source,
            }),
        }
    }
}

/// A moment in ns of CLOCK_MONOTONIC, as `bpf_ktime_get_ns` has it.
fn monotonic(moment: Instant) -> Result<u64, Error> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|e| Error::Clock(e.into()))?;
    let then = Duration::from(now).saturating_sub(moment.elapsed());
    Ok(u64::try_from(then.as_nanos()).unwrap_or(u64::MAX))
}
