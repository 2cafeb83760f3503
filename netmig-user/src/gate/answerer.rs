//! Frames that come in at the host's end of a container's veth as if the container had sent them: bridge, conntrack and NAT see no difference.
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};

use super::{Error, Gate, Orientation, Point, Step, object::Program};

/// Sends them, past the closed gate of a source; from the grant on the gate drops them.
pub struct Answerer {
    program: SchedClassifier,
    /// `struct __sk_buff`, of which only `cb[0]`, the device, is not 0.
    context: [u8; 68],
    device: String,
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
}
