//! What the network remembers of the traffic: counters and sets of packet filters, tracked connections. All of it lies inside the blackout,
//! so the parts that do not wait for each other are read beside each other.
use std::{net::IpAddr, path::Path, thread};

use netmig_core::image::v1::{
    conntrack::{Connection, Expectation, Remembered},
    net::Network,
};

use super::{
    Error,
    conntrack::{self, Present},
    filter::{self, Filters},
    own_addresses, service,
    times::Times,
};
use crate::sys::netns::within;

/// Reads it in the namespace at `netns`, and of the calling thread's (the host's) what it tracks of the container's connections. `network` is
/// how the namespace was before: filters that are still the same are left out. `services` are addresses of the host that go along.
///
/// # Errors
/// If the namespace cannot be entered, or one of the tables not be read.
pub fn read(netns: &Path, network: &Network, services: &[IpAddr]) -> Result<Remembered, Error> {
    let addresses = service::here::inside(network);
    let ((mut filters, connections, expected), (host, host_expected)) = thread::scope(|scope| {
        let inside = scope.spawn(|| of(netns, &mut Times::default()));
        let own = own_addresses()?;
        let host = conntrack::passing(&addresses, &own, services)?;
        let expected = conntrack::passing_expected(&addresses, &own)?;
        Ok::<_, Error>((joined(inside)?, (host, expected)))
    })?;
    filters.partial = network.filters.partial;
    Ok(Remembered {
        filters: (filters != network.filters).then_some(filters),
        connections,
        host,
        expected,
        host_expected,
    })
}

/// Filters, tracked and expected connections of the namespace at `netns`. The whole counts as `traffic`, besides its two parts.
///
/// # Errors
/// If the namespace cannot be entered, or one of the tables not be read.
pub(super) fn of(
    netns: &Path,
    times: &mut Times,
) -> Result<(Filters, Vec<Connection>, Vec<Expectation>), Error> {
    let (mut one, mut other) = (Times::default(), Times::default());
    let read = times.part("traffic", || {
        thread::scope(|scope| {
            let filters = scope.spawn(|| one.part("filters", || within(netns, filter::dump)));
            let tracked = || Ok::<_, Error>((conntrack::dump()?, conntrack::expectations()?));
            let (connections, expected) = other.part("connections", || within(netns, tracked))?;
            Ok((joined(filters)?, connections, expected))
        })
    });
    times.take(one);
    times.take(other);
    read
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes it in the namespace at `netns` and in the calling thread's, where `present` says what becomes of entries that are there. What could not be
/// made, in words.
///
/// # Errors
/// If the namespace cannot be entered, or the filters not be loaded.
pub fn make(netns: &Path, remembered: &Remembered, present: Present) -> Result<Vec<String>, Error> {
    let mut warnings = within(netns, || {
        let mut warnings = match &remembered.filters {
            Some(filters) => filter::converge(filters)?,
            None => Vec::new(),
        };
        // Behind the filters: what translates and labels is there by then.
        warnings.extend(conntrack::insert(
            &remembered.connections,
            Present::Replace,
        )?);
        warnings.extend(conntrack::expect(&remembered.expected)?);
        Ok::<_, Error>(warnings)
    })?;
    warnings.extend(conntrack::insert(&remembered.host, present)?);
    warnings.extend(conntrack::expect(&remembered.host_expected)?);
    Ok(warnings)
}
