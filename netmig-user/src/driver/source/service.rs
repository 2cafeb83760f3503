//! Service addresses at the source: silent from the grant on, taken off once the container lives at the target, or spoken for again.
use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Context, Result};
use netmig_core::{
    image::v1::conntrack::{Connection, Remembered},
    service::{Behind, Service},
};
use tracing::{debug, warn};

use super::steps::Steps;
use crate::{
    agent::local::Told,
    net::{
        self, conntrack,
        service::{Against, address, gone, here, silence},
    },
    sock,
};

impl Steps {
    /// Why service addresses cannot leave this host that the target does not have by itself; and what ends with them, in spite of that.
    pub fn against(&self, shared: &[IpAddr]) -> (Vec<String>, Vec<String>) {
        let (behind, against) = {
            let mut state = self.state();
            state.shared = shared.to_vec();
            (state.behind.clone(), state.against.clone())
        };
        let moving = addresses(&moving(&behind, shared));
        let (mut objections, mut warnings) = (Vec::new(), Vec::new());
        let waived = self.spec.allow.iter().any(|key| key == "reset");
        let mut say = |reason: String, resets: bool| match resets {
            false => objections.push(reason),
            true if waived => warnings.push(reason),
            true => objections.push(format!("{reason}; --allow reset lets them")),
        };
        for Against { reason, resets, .. } in
            against.into_iter().filter(|a| moving.contains(&a.address))
        {
            say(reason, resets);
        }
        match sock::connections_at(&moving) {
            Ok(connections) => {
                for connection in connections {
                    let sock::HostConnection {
                        local,
                        peer,
                        program,
                    } = &connection;
                    let what = format!(
                        "{program} on this host has a connection at service address {} ({local} - {peer})",
                        local.ip
                    );
                    // The move hangs on it, or the operator.
                    if connection.leads_here() {
                        say(
                            format!(
                                "{what}, which would be cut off in the middle of the move: let hosts and operators reach each other by other addresses"
                            ),
                            false,
                        );
                    } else {
                        say(format!("{what}, which ends when that leaves"), true);
                    }
                }
            }
            Err(e) => say(e.to_string(), false),
        }
        (objections, warnings)
    }

    /// Makes what [`Steps::fall_silent`] takes no time to make then.
    pub(super) fn prepare_silence(&self) -> Result<()> {
        if self.behind().is_some() {
            silence::prepare(self.id)
                .context("making ready to keep this host from answering for the service address")?;
        }
        Ok(())
    }

    /// From here on this host says nothing by addresses that the target is about to have, and keeps forwarding what comes for the container.
    /// What has come to be tracked since the container's connections were read is left for [`Steps::remembered`].
    pub(super) fn fall_silent(&self) -> Result<()> {
        let Some((behind, moving)) = self.behind() else {
            return Ok(());
        };
        let network = {
            let mut state = self.state();
            state.silent = true;
            state.network.clone().unwrap_or_default()
        };
        let began = Instant::now();
        silence::silence(self.id, &addresses(&moving))
            .context("keeping this host from answering for the service address")?;
        address::pin(&behind, &network)?;
        let now = here::moving(&behind, &network)?;
        let state = self.state();
        let known: BTreeSet<_> = state
            .tracked
            .iter()
            .map(|c| (&c.original, c.zone))
            .collect();
        let new: Vec<_> = now
            .into_iter()
            .filter(|c| !known.contains(&(&c.original, c.zone)))
            .collect();
        debug!(mv = %self.id, took = ?began.elapsed(), connections = new.len(), "silent; tracked since the freeze");
        drop(state);
        self.be_lenient(&new);
        let mut state = self.state();
        if !new.is_empty() {
            state.tracked.extend(new.iter().cloned());
            state.remembered = Some(Box::new(Remembered {
                host: new,
                ..Remembered::default()
            }));
        }
        Ok(())
    }

    /// What still comes here by these connections is translated and forwarded, also when it answers what the container has sent from the target.
    pub(super) fn be_lenient(&self, connections: &[Connection]) {
        match conntrack::set_lenient(connections, true) {
            Ok(failed) => failed
                .iter()
                .for_each(|what| warn!(mv = %self.id, "{what}")),
            Err(e) => warn!(mv = %self.id, "{e}"),
        }
    }

    /// The same once more for an agent that takes the move up: the host may have been started anew since, and have forgotten it.
    pub fn stay_silent(&self) -> Result<()> {
        let Some((_, moving)) = self.behind() else {
            return Ok(());
        };
        let gone = addresses(&moving);
        if silence::silence(self.id, &gone).is_err() {
            silence::prepare(self.id)?;
            silence::silence(self.id, &gone)?;
        }
        Ok(())
    }

    /// The container stays, and with it the addresses: this host answers for them again, and says so. What failed, in words.
    pub(super) fn speak_again(&self) -> Vec<String> {
        let Some((behind, moving)) = self.behind() else {
            return Vec::new();
        };
        let tracked = std::mem::take(&mut self.state().tracked);
        let mut left =
            conntrack::set_lenient(&tracked, false).unwrap_or_else(|e| vec![e.to_string()]);
        if !std::mem::take(&mut self.state().silent) {
            return left;
        }
        let network = self.state().network.clone().unwrap_or_default();
        left.extend(silence::lift(self.id).err().map(|e| e.to_string()));
        left.extend(
            address::unpin(&behind, &network)
                .err()
                .map(|e| e.to_string()),
        );
        left.extend(net::announce_own(&address::at_source(&moving)));
        left
    }

    /// The target has the addresses, and nothing more is forwarded there: what still comes is dropped, and the addresses are taken off. What
    /// failed, in words.
    pub(super) fn retire_services(&self) -> Vec<String> {
        let Some((behind, moving)) = self.behind() else {
            return Vec::new();
        };
        let network = self.state().network.clone().unwrap_or_default();
        let inside = here::inside(&network);
        let mut left = Vec::new();
        let gone = addresses(&moving);
        match here::moving(&behind, &network) {
            Ok(all) => self.state().tracked.extend(all),
            Err(e) => left.push(e.to_string()),
        }
        let by_shared: Vec<_> = {
            let state = self.state();
            let shared = |c: &&_| {
                conntrack::seen(c, &inside).is_some_and(|seen| !gone.contains(&seen.outer))
            };
            state.tracked.iter().filter(shared).cloned().collect()
        };
        left.extend(silence::shut(self.id, &gone).err().map(|e| e.to_string()));
        left.extend(address::take(&moving));
        if !by_shared.is_empty() {
            left.extend(
                gone::begin(&by_shared, &inside)
                    .err()
                    .map(|e| e.to_string()),
            );
            self.feed.tell(Told::Note(format!(
                "what still comes here of connections by addresses that both hosts have is dropped for {} s: lead it to the target by then",
                gone::WHILE.as_secs()
            )));
            self.handle.spawn(forget_gone());
        }
        left
    }

    /// Nothing of the container is left here that would answer. What failed or came too late, in words.
    pub(super) fn end_silence(&self) -> Option<String> {
        self.behind()?;
        match silence::lift(self.id) {
            Ok(0) => None,
            Ok(packets) => Some(format!(
                "{packets} packets for the container came to this host when it had left, and were dropped: their senders send them again, to the target once they \
                 have learnt where it is"
            )),
            Err(e) => Some(e.to_string()),
        }
    }

    fn behind(&self) -> Option<(Behind, Vec<Service>)> {
        let state = self.state();
        let behind = state.behind.clone()?;
        let moving = behind.moving(&state.shared);
        Some((behind, moving))
    }
}

/// How many tables of [`gone`] have a task that removes them.
static GOING: AtomicUsize = AtomicUsize::new(0);

/// Whether the agent is still to remove what drops packets of connections that have moved.
pub fn waits() -> bool {
    GOING.load(Ordering::SeqCst) > 0
}

/// Removes what drops packets of connections that have moved, once its time is over. An agent that starts does the same.
pub async fn forget_gone() {
    GOING.fetch_add(1, Ordering::SeqCst);
    loop {
        match tokio::task::spawn_blocking(gone::sweep).await {
            Ok(Ok(0)) => break,
            Ok(Ok(_)) => {}
            Ok(Err(e)) => break warn!("{e}"),
            Err(e) => {
                break warn!("removing what drops packets of connections that have moved: {e}");
            }
        }
        tokio::time::sleep(gone::WHILE / 6).await;
    }
    GOING.fetch_sub(1, Ordering::SeqCst);
}

fn moving(behind: &Option<Behind>, shared: &[IpAddr]) -> Vec<Service> {
    behind.iter().flat_map(|b| b.moving(shared)).collect()
}

fn addresses(services: &[Service]) -> Vec<IpAddr> {
    services.iter().map(|s| s.address.local.address).collect()
}
