//! Before anything is frozen: the answer to a plan, the record, the namespace behind a closed gate.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use netmig_common::{Mode, Side};
use netmig_core::{
    container::{Container, Recipe},
    image::v1::net::{Link, Network},
    proto::{Answer, Attach, Question},
};

use super::{super::points, steps::Steps};
use crate::{
    agent::paths,
    engine::{
        self,
        criu::hook::{self, NetavarkCall, NetavarkReply},
    },
    gate::Gate,
    host, net,
    runtime::{self, Accepted, podman},
    sock,
};

/// Longest time to wait for an answer to an ARP or ND probe.
pub(super) const PROBE: Duration = Duration::from_millis(300);

/// How often the probe is sent before the container counts as unseen.
pub(super) const PROBES: u32 = 5;

impl Steps {
    /// What stands against this container here. Changes nothing.
    pub fn answer(&self, question: &Question) -> Result<Answer> {
        let container = &question.container;
        let facts = host::facts(&paths::state_moves(), &paths::run_moves());
        let Accepted {
            mut objections,
            mut warnings,
            lacks_image,
        } = runtime::of(container.manager)
            .accepts(container)
            .unwrap_or_else(|e| Accepted {
                objections: vec![e.to_string()],
                ..Accepted::default()
            });
        self.state().lacks_image = lacks_image;
        let found = net::objections(
            &self.planned_netns(container),
            &question.network,
            &question.attach,
            self.id,
        )?;
        objections.extend(found.objections);
        warnings.extend(found.warnings);
        let mut shared = Vec::new();
        if let Some(behind) = &question.behind {
            let found = net::service::there::look(behind, &question.network, PROBE)?;
            objections.extend(found.objections);
            warnings.extend(found.warnings);
            shared = found.shared;
        }
        let hidden = |link: &str| question.behind.as_ref().is_some_and(|b| b.hides(link));
        for attach in question.attach.iter().filter(|a| !hidden(&a.link)) {
            let physical = |l: &Link| l.name == attach.link && l.kind.is_physical();
            if question.network.links.iter().any(physical)
                && net::physical::is_down(&attach.parent)?
            {
                warnings.push(format!(
                    "{} is down here: whether the container's segment is behind it, and its addresses are free there, was not tried",
                    attach.parent
                ));
                continue;
            }
            match probe(attach, &question.network) {
                Ok(answers) => {
                    let foreign = answers.iter().filter(|answer| !answer.own);
                    objections.extend(foreign.map(|answer| {
                        format!("{} is in use by {} on {}: the container's address must be its own; find that host and take the address off it", answer.address, answer.mac, attach.parent)
                    }));
                    if !net::probe::segment(&answers, &attach.link, &question.network).same() {
                        objections.push(format!(
                            "the container does not answer on {}: {} of this host and the source's are not on the same segment; connect them, or move to a host where they are",
                            attach.parent, attach.parent
                        ));
                    }
                }
                // The missing bridge stands among the objections already.
                Err(e) if objections.is_empty() => objections.push(e.to_string()),
                Err(_) => {}
            }
        }
        Ok(Answer {
            facts,
            objections,
            warnings,
            lacks_image,
            shared,
        })
    }

    /// Where the container's namespace will be. podman makes its own under netavark; then any free name serves for a look.
    pub(super) fn planned_netns(&self, container: &Container) -> PathBuf {
        match (&container.netns, &container.recipe) {
            (Some(path), Recipe::Bundle { .. } | Recipe::Bare { .. }) => path.clone(),
            (Some(path), Recipe::Podman { networks, .. }) if networks.is_empty() => path.clone(),
            _ => self.own_netns(),
        }
    }

    /// A namespace made before podman makes its own, which it then takes the place of.
    pub(super) fn own_netns(&self) -> PathBuf {
        Path::new("/run/netns").join(format!("netmig-{}", self.id))
    }

    /// The container's record and, where the runtime does not make one, its namespace with links behind a closed gate.
    pub fn prepare(&self, mut question: Question) -> Result<()> {
        let container = question.container.clone();
        self.state().question = Some(question.clone());
        let exe = paths::program().context("finding this program")?;
        let kit = engine::prepare(
            &paths::run(self.id),
            hook::Side::Target,
            &container,
            self.id,
            &exe,
        )
        .context("making the engine ready")?;
        self.state().kit = Some(kit.clone());
        self.await_image(&container)?;
        let created = runtime::of(container.manager).create(&container, &*kit)?;
        let netns = created.netns.clone().unwrap_or_else(|| self.own_netns());
        if let Some(behind) = &question.behind {
            // It may have left here a moment ago.
            net::service::gone::end(&net::service::here::inside(&question.network))?;
            net::service::there::forget_source(behind, &mut question.network);
        }
        let own = net::own_addresses()?;
        let moving = question.behind.as_ref().map(|behind| behind.moving(&own));
        let mut state = self.state();
        state.made.container = Some(created.clone());
        state.made.services = moving.unwrap_or_default();
        drop(state);
        self.remember();
        self.build_network(&netns, &question)?;
        if let Err(e) = sock::prepare() {
            self.warn(format!("{:#}", anyhow::Error::from(e)));
        }
        Ok(kit.stand_by(&container, &created, &self.over)?)
    }

    /// Links, addresses and routes in the namespace at `netns`; no link is up before the gate stands there, closed.
    pub(super) fn build_network(&self, netns: &Path, question: &Question) -> Result<()> {
        let intent = net::intent(netns, &question.network, &question.attach, self.id)?;
        let mut state = self.state();
        state.made.network = Some(intent);
        state.made.gate = true;
        state.netns = Some(netns.to_owned());
        drop(state);
        self.remember();
        let pins = paths::pins(self.id);
        if let Some(parent) = pins.parent() {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("making {}", parent.display()))?;
        }
        let mut standing = None;
        let created = net::create(
            netns,
            &question.network,
            &question.attach,
            self.id,
            &mut |links| {
                // `lo` needs no gate here: nothing runs in the namespace before the sockets are rebuilt.
                let outer: Vec<_> = links
                    .iter()
                    .filter(|link| link.kind != net::LinkKind::Loopback)
                    .cloned()
                    .collect();
                let points = points::of(&outer, netns);
                let gate = Gate::attach(
                    self.id,
                    Side::Target,
                    Mode::Closed,
                    self.epoch,
                    &points,
                    &pins,
                )
                .map_err(|e| e.to_string())?;
                standing = Some((gate, outer));
                Ok(())
            },
        )?;
        if let Some(behind) = &question.behind {
            net::service::there::lead_here(behind, netns)?;
        }
        let mut state = self.state();
        state.made.network = Some(created);
        if let Some((gate, links)) = standing {
            (state.gate, state.links) = (Some(gate), links);
        }
        drop(state);
        self.remember();
        self.prepare_hold(question);
        Ok(())
    }

    /// podman calls netavark: the network stands already, and takes the place of podman's empty namespace.
    pub fn netavark(&self, call: &NetavarkCall) -> NetavarkReply {
        match self.try_netavark(call) {
            Ok(reply) => reply,
            Err(e) => NetavarkReply::Fail(format!("{e:#}")),
        }
    }

    pub(super) fn try_netavark(&self, call: &NetavarkCall) -> Result<NetavarkReply> {
        if call.command != "setup" {
            return Ok(NetavarkReply::Answer(Vec::new()));
        }
        let status = podman::netavark::status(&call.stdin)?;
        if self.state().restoring {
            let podmans = call.netns.as_ref().context("podman names no namespace")?;
            podman::netavark::put_in_place(&self.own_netns(), podmans)?;
        }
        Ok(NetavarkReply::Answer(status))
    }
}

/// Who answers for the container's addresses on the parent here. A busy source may be slow to answer: it is asked again.
pub(super) fn probe(attach: &Attach, network: &Network) -> Result<Vec<net::Clash>, net::Error> {
    let mut answers = Vec::new();
    for _ in 0..PROBES {
        answers = net::clashes(&attach.parent, &attach.link, network, PROBE)?;
        if net::probe::segment(&answers, &attach.link, network).same() {
            break;
        }
    }
    Ok(answers)
}
