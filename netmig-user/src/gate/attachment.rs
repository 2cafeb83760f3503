//! Programs at a device: TCX links where the kernel has them (6.6), else filters of a clsact qdisc.
use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, Link as _, LinkError, PinnedLink},
    loaded_programs,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use netlink_packet_route::link::LinkLayerType;
use netmig_core::id::MoveId;
use nix::errno::Errno;

use super::{
    Error, Orientation, Point, Step,
    netlink::{self, Device},
    object::Program,
    record::{How, Record},
};
use crate::sys::netns;

/// Which way to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// TCX if the kernel has it.
    Best,
    /// clsact also where TCX would do.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "on a kernel with TCX only the tests ask for it")
    )]
    Clsact,
}

/// Priority of the filters: before what others have, unless they were as eager.
const PRIORITY: u16 = 1;

/// Attaches the programs of a point. On an error nothing of it is left.
pub(super) fn attach(
    mv: MoveId,
    pins: &Path,
    number: u32,
    point: &Point,
    via: Via,
) -> Result<Record, Error> {
    inside(point, || {
        let device = device(point)?;
        let hooks = hooks(point.orientation);
        let tcx = has_tcx(&device, hooks, pins)? && via == Via::Best;
        refuse_second(&device, hooks, pins)?;
        let how = if tcx {
            How::Tcx
        } else {
            let had =
                netlink::has_clsact(device.index).map_err(|e| failed(Step::Query, &device, e))?;
            let handle = u32::from_be_bytes([mv.0[0], mv.0[1], mv.0[2], mv.0[3]]) | 1;
            How::Clsact {
                priority: PRIORITY,
                handle,
                made_qdisc: !had,
            }
        };
        let record = Record {
            number,
            point: point.clone(),
            namespace: namespace(point)?,
            how,
        };
        record.write(pins)?;
        let attached = match how {
            How::Tcx => hooks
                .iter()
                .try_for_each(|&(program, at)| attach_link(pins, &record, &device, program, at)),
            How::Clsact {
                priority,
                handle,
                made_qdisc,
            } => attach_filters(pins, &device, hooks, priority, handle, made_qdisc),
        };
        if let Err(error) = attached {
            for left in detach_here(pins, &record) {
                tracing::warn!(%left, "undoing an attach that failed");
            }
            return Err(error);
        }
        Ok(record)
    })
}

/// Takes the programs of a point off and removes its record. What is gone already is no error.
pub(super) fn detach(pins: &Path, record: &Record) -> Vec<Error> {
    match record.how {
        // A link is detached by its descriptor, wherever its device is.
        How::Tcx => detach_here(pins, record),
        How::Clsact { .. } => {
            let same = namespace(&record.point).is_ok_and(|n| n == record.namespace);
            if !same {
                // The filters went with their namespace.
                return forget(pins, record);
            }
            match inside(&record.point, || Ok(detach_here(pins, record))) {
                Ok(left) => left,
                Err(error) => vec![error],
            }
        }
    }
}

type Hook = (Program, TcAttachType);

fn hooks(orientation: Orientation) -> &'static [Hook] {
    match orientation {
        Orientation::HostSide => &[
            (Program::Inbound, TcAttachType::Egress),
            (Program::Outbound, TcAttachType::Ingress),
        ],
        Orientation::Inside => &[
            (Program::Inbound, TcAttachType::Ingress),
            (Program::Outbound, TcAttachType::Egress),
        ],
        Orientation::Loopback => &[(Program::Loopback, TcAttachType::Ingress)],
    }
}

fn inside<T: Send>(point: &Point, f: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    match &point.netns {
        Some(path) => netns::within(path, f),
        None => f(),
    }
}

fn namespace(point: &Point) -> Result<(u64, u64), Error> {
    let path = point
        .netns
        .as_deref()
        .unwrap_or(Path::new("/proc/thread-self/ns/net"));
    let meta = fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

fn failed(
    step: Step,
    device: &Device,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Device {
        step,
        device: device.name.clone(),
        source: source.into(),
    }
}

fn device(point: &Point) -> Result<Device, Error> {
    let wanted = match point.orientation {
        Orientation::Loopback => LinkLayerType::Loopback,
        _ => LinkLayerType::Ether,
    };
    let found = netlink::device(point.ifindex).map_err(|source| Error::Device {
        step: Step::Look,
        device: point.name.clone(),
        source: source.into(),
    })?;
    match found {
        Some(device) if device.kind == wanted => Ok(device),
        Some(device) => Err(Error::LinkType {
            device: device.name,
            kind: device.kind.to_string(),
        }),
        None => Err(Error::Gone {
            device: point.name.clone(),
            ifindex: point.ifindex,
        }),
    }
}

/// Whether the kernel has TCX links; refuses a device where a gate has one.
fn has_tcx(device: &Device, hooks: &[Hook], pins: &Path) -> Result<bool, Error> {
    for &(_, at) in hooks {
        match SchedClassifier::query_tcx(&device.name, at) {
            Ok((_, programs)) => {
                let gate = programs
                    .iter()
                    .find(|p| p.name().starts_with(Program::PREFIX.as_bytes()));
                if let Some(program) = gate {
                    return Err(occupied(device, program.id(), pins));
                }
            }
            // BPF_PROG_QUERY does not know the attach type.
            Err(e) if errno(&e) == Some(Errno::EINVAL) => return Ok(false),
            Err(e) => return Err(failed(Step::Query, device, e)),
        }
    }
    Ok(true)
}

/// Refuses a device where a gate has a filter. The kernel knows what a filter was called by who made it; the program's own name is surer.
fn refuse_second(device: &Device, hooks: &[Hook], pins: &Path) -> Result<(), Error> {
    let query = |e: Box<dyn std::error::Error + Send + Sync>| failed(Step::Query, device, e);
    for &(_, at) in hooks {
        let filters = netlink::bpf_filters(device.index, at).map_err(|e| query(e.into()))?;
        if filters.is_empty() {
            continue;
        }
        for program in loaded_programs() {
            let program = program.map_err(|e| query(e.into()))?;
            if filters.contains(&program.id())
                && program.name().starts_with(Program::PREFIX.as_bytes())
            {
                return Err(occupied(device, program.id(), pins));
            }
        }
    }
    Ok(())
}

/// Names the pins of the gate that has this program, as far as they lie beside ours.
fn occupied(device: &Device, program: u32, pins: &Path) -> Error {
    let owner = || {
        let siblings = super::pinned(pins.parent()?).ok()?;
        siblings.into_iter().find(|sibling| {
            Program::ALL.iter().any(|p| {
                p.open(sibling)
                    .ok()
                    .and_then(|p| p.info().ok())
                    .is_some_and(|info| info.id() == program)
            })
        })
    };
    let by = owner().map_or_else(String::new, |path| {
        format!(", pinned at {}", path.display())
    });
    Error::Occupied {
        device: device.name.clone(),
        by,
    }
}

fn attach_link(
    pins: &Path,
    record: &Record,
    device: &Device,
    program: Program,
    at: TcAttachType,
) -> Result<(), Error> {
    let mut loaded = program.open(pins)?;
    let attach = |loaded: &mut SchedClassifier| {
        // First: what others do must not lead a packet past the gate.
        let id = loaded.attach_with_options(
            &device.name,
            at,
            TcAttachOptions::TcxOrder(LinkOrder::first()),
        )?;
        FdLink::try_from(loaded.take_link(id)?)
            .map_err(|e| ProgramError::IOError(io::Error::other(e)))
    };
    let link = attach(&mut loaded).map_err(|e| failed(Step::Attach, device, e))?;
    link.pin(record.link(pins, program.name()))
        .map_err(|source| Error::Pin {
            name: format!("the link of {} at {}", program.name(), device.name),
            source,
        })?;
    Ok(())
}

fn attach_filters(
    pins: &Path,
    device: &Device,
    hooks: &[Hook],
    priority: u16,
    handle: u32,
    make_qdisc: bool,
) -> Result<(), Error> {
    if make_qdisc {
        qdisc_add_clsact(&device.name).map_err(|e| failed(Step::Clsact, device, e))?;
    }
    for &(program, at) in hooks {
        let mut loaded = program.open(pins)?;
        let options = NlOptions {
            priority,
            handle: TcHandle::from(handle),
            classid: None,
        };
        let attach = |loaded: &mut SchedClassifier| {
            let id =
                loaded.attach_with_options(&device.name, at, TcAttachOptions::Netlink(options))?;
            loaded.take_link(id)
        };
        let link = attach(&mut loaded).map_err(|e| failed(Step::Attach, device, e))?;
        // Dropped, it would take the filter away; it owns nothing else.
        std::mem::forget(link);
    }
    Ok(())
}

fn detach_here(pins: &Path, record: &Record) -> Vec<Error> {
    let mut left = Vec::new();
    let hooks = hooks(record.point.orientation);
    match record.how {
        How::Tcx => {
            for (program, _) in hooks {
                left.extend(detach_link(pins, record, *program).err());
            }
        }
        How::Clsact {
            priority,
            handle,
            made_qdisc,
        } => {
            left.extend(detach_filters(
                &record.point,
                hooks,
                priority,
                handle,
                made_qdisc,
            ));
        }
    }
    // A record whose programs are still there stays, for the next try.
    if left.is_empty() {
        forget(pins, record)
    } else {
        left
    }
}

fn forget(pins: &Path, record: &Record) -> Vec<Error> {
    let path = record.path(pins);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            vec![Error::Pins {
                step: Step::Unpin,
                path,
                source,
            }]
        }
        _ => Vec::new(),
    }
}

fn detach_link(pins: &Path, record: &Record, program: Program) -> Result<(), Error> {
    let path = record.link(pins, program.name());
    let link = match PinnedLink::from_pin(&path) {
        Ok(link) => link,
        Err(LinkError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => {
            return Ok(());
        }
        Err(e) => {
            return Err(Error::Device {
                step: Step::Detach,
                device: record.point.name.clone(),
                source: e.into(),
            });
        }
    };
    // The descriptor is closed after the pin is gone: closing the last reference detaches at once (bpf_link_release), removing the pin as
    // the last would leave it to a work queue.
    let link = link.unpin().map_err(|source| Error::Pins {
        step: Step::Unpin,
        path,
        source,
    })?;
    drop(link);
    Ok(())
}

fn detach_filters(
    point: &Point,
    hooks: &[Hook],
    priority: u16,
    handle: u32,
    made_qdisc: bool,
) -> Vec<Error> {
    let at = |source: Box<dyn std::error::Error + Send + Sync>| Error::Device {
        step: Step::Detach,
        device: point.name.clone(),
        source,
    };
    let device = match netlink::device(point.ifindex) {
        Ok(Some(device)) => device,
        // The filters went with their device.
        Ok(None) => return Vec::new(),
        Err(e) => return vec![at(e.into())],
    };
    let mut left = Vec::new();
    for &(_, hook) in hooks {
        let detached = SchedClassifierLink::attached(
            &device.name,
            hook,
            priority,
            TcHandle::from(handle),
            None,
        )
        .map_err(ProgramError::IOError)
        .and_then(|link| link.detach());
        match detached {
            Err(e) if !matches!(errno(&e), Some(Errno::ENOENT | Errno::EINVAL)) => {
                left.push(at(e.into()))
            }
            _ => {}
        }
    }
    if made_qdisc && left.is_empty() {
        left.extend(
            netlink::remove_empty_clsact(device.index)
                .map_err(|e| at(e.into()))
                .err(),
        );
    }
    left
}

fn errno(error: &ProgramError) -> Option<Errno> {
    let raw = match error {
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        ProgramError::IOError(e) => e.raw_os_error(),
        ProgramError::NetlinkError(e) | ProgramError::TcError(TcError::NetlinkError(e)) => {
            e.raw_os_error()
        }
        _ => None,
    };
    raw.map(Errno::from_raw)
}
