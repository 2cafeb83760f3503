//! What the network remembers of the traffic: counters and sets of packet filters, tracked connections. All of it lies inside the blackout,
//! so the parts that do not wait for each other are read beside each other.
use std::{net::IpAddr, path::Path, thread};

use netmig_core::image::v1::{
    conntrack::{Connection, Remembered},
    net::Network,
};

use super::{
    Error,
    conntrack::{self, Present},
    filter::{self, Filters},
    own_addresses,
    times::Times,
};
use crate::sys::netns::within;

/// Reads it in the namespace at `netns`, and of the calling thread's (the host's) what it tracks of the container's connections. `network` is
/// how the namespace was before: filters that are still the same are left out.
///
/// # Errors
/// If the namespace cannot be entered, or one of the tables not be read.
pub fn read(netns: &Path, network: &Network) -> Result<Remembered, Error> {
    let addresses: Vec<IpAddr> = network
        .addresses
        .iter()
        .map(|a| a.local.address)
        .filter(|a| !a.is_loopback())
        .collect();
    let ((mut filters, connections), host) = thread::scope(|scope| {
        let inside = scope.spawn(|| of(netns, &mut Times::default()));
        let host = conntrack::passing(&addresses, &own_addresses()?)?;
        Ok::<_, Error>((joined(inside)?, host))
    })?;
    filters.partial = network.filters.partial;
    Ok(Remembered {
        filters: (filters != network.filters).then_some(filters),
        connections,
        host,
    })
}

/// Filters and tracked connections of the namespace at `netns`. The whole counts as `traffic`, besides its two parts.
///
/// # Errors
/// If the namespace cannot be entered, or one of the tables not be read.
pub(super) fn of(netns: &Path, times: &mut Times) -> Result<(Filters, Vec<Connection>), Error> {
    let (mut one, mut other) = (Times::default(), Times::default());
    let read = times.part("traffic", || {
        thread::scope(|scope| {
            let filters = scope.spawn(|| one.part("filters", || within(netns, filter::dump)));
            let connections = other.part("connections", || within(netns, conntrack::dump))?;
            Ok((joined(filters)?, connections))
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

/// Makes it in the namespace at `netns` and in the calling thread's. What could not be made, in words.
///
/// # Errors
/// If the namespace cannot be entered, or the filters not be loaded.
pub fn make(netns: &Path, remembered: &Remembered) -> Result<Vec<String>, Error> {
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
        Ok::<_, Error>(warnings)
    })?;
    warnings.extend(conntrack::insert(&remembered.host, Present::Keep)?);
    Ok(warnings)
}
