//! The hold at the target: the source's packets first, then what it still forwards, then what comes here directly.
mod inbox;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use netmig_common::{Mode, Side};
use netmig_core::{
    frame::Frame,
    id::{Epoch, MoveId},
    proto::Question,
};
use tokio::sync::Notify;
use tracing::{info, warn};

use self::inbox::Inbox;
use super::{
    super::{
        clock::unix_us,
        hold::{self, Delivery, LOOK, OPENING, Promised, Renewed, Store, Tap},
    },
    steps::Steps,
};
use crate::{
    agent::paths,
    gate::{
        Gate, Point,
        hold::{Order, Packet},
    },
    net,
    wire::pipe::Pipe,
};

/// Between two looks at what waits for room.
const GLANCE: Duration = Duration::from_millis(1);
/// How long packets that a program was just redirecting may take to be read.
const READING: Duration = Duration::from_millis(100);

/// The target's hold of one move.
pub(super) struct Hold {
    mv: MoveId,
    inbox: Mutex<Inbox>,
    /// For the thread that delivers, and who waits for it.
    changed: Condvar,
    /// For the task that receives: there is something to say.
    news: Notify,
    /// The readers and the delivery end.
    over: AtomicBool,
    points: Vec<(u16, Point)>,
    /// What went otherwise than it should.
    left: Mutex<Vec<String>>,
    taps: Mutex<Vec<Tap>>,
}

impl Hold {
    /// TAPs for the links of a namespace whose gate stands closed. Nothing is held here before the opening: what comes before the
    /// announcement comes to the source as well.
    fn prepare(
        mv: MoveId,
        links: &[net::Link],
        question: &Question,
        points: &[Point],
    ) -> Result<Self> {
        let places = hold::places(links, &question.network, points);
        let taps = hold::taps(mv, Side::Target, places.clone())?;
        Ok(Self {
            mv,
            inbox: Mutex::new(Inbox::new(owned(mv))),
            changed: Condvar::new(),
            news: Notify::new(),
            over: AtomicBool::new(false),
            points: places,
            left: Mutex::default(),
            taps: Mutex::new(taps),
        })
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inbox: MutexGuard<'a, Inbox>, limit: Duration) -> MutexGuard<'a, Inbox> {
        self.changed
            .wait_timeout(inbox, limit)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Takes what the source sends on this connection, to its end.
    async fn receive(&self, number: u64, mut pipe: Pipe) -> Result<()> {
        loop {
            let mark = self.inbox().say(number);
            if let Some(frame) = mark {
                let account = matches!(frame, Frame::HoldDone(_));
                pipe.send(frame).await?;
                if account {
                    pipe.finish().await?;
                    return Ok(());
                }
            }
            tokio::select! {
                () = self.news.notified() => {}
                frame = pipe.receive() => match frame? {
                    Some(frame) => {
                        self.inbox().take(number, frame)?;
                        self.changed.notify_all();
                    }
                    None => bail!("the source closed it"),
                },
            }
        }
    }

    /// The connection is gone: nothing more comes.
    fn gone(&self, number: u64) {
        let mut inbox = self.inbox();
        if number == inbox.connection {
            (inbox.announced, inbox.ended) = (inbox.open, inbox.open);
        }
        self.changed.notify_all();
    }

    /// Opens the gate in order. False where the source has opened no connection: then there is nothing to put in order.
    fn open(&self, gate: &Gate, epoch: Epoch) -> Result<bool> {
        let mut inbox = self.inbox();
        if inbox.begun.is_none() || inbox.open {
            return Ok(false);
        }
        for tap in self.taps().iter() {
            gate.hold(&tap.point, &tap.reader)?;
        }
        // Nothing direct overtakes what the gate does not know of.
        gate.order().barrier();
        gate.open_in_order(epoch, OPENING)?;
        inbox.open = true;
        Ok(true)
    }

    fn taps(&self) -> MutexGuard<'_, Vec<Tap>> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container's addresses have been announced: packets come to this host from now on.
    fn announced(&self) {
        self.inbox().to_say = true;
        self.news.notify_one();
    }

    /// Delivers from now on, beside what follows. Room for what was promised is made before: sockets go into repair for that, and the tasks must
    /// not run yet.
    fn deliver(
        self: &Arc<Self>,
        order: Order,
        epoch: Epoch,
        netns: &Path,
        mut promised: Option<Promised>,
    ) -> Result<()> {
        if let Some(promised) = &mut promised {
            self.went_wrong(promised.make_room());
        }
        let injectors = hold::injectors(self.points.iter().map(|(link, point)| (*link, point)))?;
        let delivery = Delivery::new(injectors, order.clone(), netns);
        for tap in self.taps().drain(..) {
            let hold = self.clone();
            thread::spawn(move || hold.read(tap));
        }
        let hold = self.clone();
        thread::spawn(move || hold.run(delivery, &order, epoch, promised));
        Ok(())
    }

    fn read(&self, mut tap: Tap) {
        while !self.over.load(Ordering::SeqCst) {
            match tap.reader.next(LOOK) {
                Ok(Some(packet)) => {
                    let mut inbox = self.inbox();
                    inbox.done.direct += 1;
                    inbox.direct.push_back((tap.link, packet));
                    drop(inbox);
                    self.changed.notify_all();
                }
                Ok(None) => {}
                Err(e) => return warn!(mv = %self.mv, "the hold ends: {e}"),
            }
        }
    }

    fn run(
        &self,
        mut delivery: Delivery,
        order: &Order,
        epoch: Epoch,
        mut promised: Option<Promised>,
    ) {
        let opened = Instant::now();
        let mut renewed = Renewed::begin(epoch);
        let mut inbox = self.inbox();
        let barrier = Duration::from_micros(inbox.begun.map_or(0, |begun| begun.barrier_us));
        let mut lifted = false;
        loop {
            if !lifted {
                renewed.go_on(order);
            }
            let mut batch: Vec<_> = std::iter::from_fn(|| inbox.shipped.pop()).collect();
            let shipped = batch.len();
            if !inbox.announced && opened.elapsed() >= barrier {
                (inbox.announced, inbox.done.late) = (true, true);
            }
            // The mark came behind the last packet that it stands for.
            let direct = inbox.announced;
            if direct {
                batch.extend(inbox.direct.drain(..));
            }
            drop(inbox);
            for (n, (link, packet)) in batch.into_iter().enumerate() {
                delivery.give(link, packet, n >= shipped);
            }
            // What was promised came before the grant, so it is in the first batch.
            if let Some(promised) = promised.take() {
                self.went_wrong(promised.keep(&mut delivery));
                self.went_wrong(forget_owned(self.mv).into_iter().collect());
            }
            let idle = delivery.go_on();
            if direct && idle && !lifted {
                // From here on the gate itself decides: it passes once all that it has redirected is in.
                lifted = true;
                order.done(1);
            }
            inbox = self.inbox();
            inbox.done.replayed = delivery.replayed();
            inbox.dropped(delivery.dropped());
            if !inbox.shipped.is_empty() || (direct && !inbox.direct.is_empty()) {
                continue;
            }
            if inbox.idle != (lifted && idle) {
                inbox.idle = lifted && idle;
                self.news.notify_one();
                self.changed.notify_all();
            }
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let limit = if idle && inbox.announced {
                LOOK
            } else {
                GLANCE
            };
            inbox = self.wait(inbox, limit);
        }
    }

    fn went_wrong(&self, what: Vec<String>) {
        for text in &what {
            warn!(mv = %self.mv, "{text}");
        }
        self.left
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(what);
    }

    /// What has come from the source so far.
    pub(super) fn shipped(&self) -> Vec<(u16, Packet)> {
        let inbox = self.inbox();
        (0..inbox.shipped.len())
            .filter_map(|n| inbox.shipped.get(n).cloned())
            .collect()
    }

    /// Lets the gate pass once all is in, and ends.
    fn finish(&self, gate: Option<&Gate>, epoch: Epoch) -> Vec<String> {
        let mut left =
            std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        if self.inbox().open
            && let Some(gate) = gate
        {
            let order = gate.order();
            let settled = |limit| {
                let until = Instant::now() + limit;
                let mut inbox = self.inbox();
                while (!inbox.idle || order.pending() > 0) && Instant::now() < until {
                    inbox = self.wait(inbox, GLANCE);
                }
            };
            settled(OPENING);
            let opening = order.opening();
            if opening.is_ok_and(|opening| opening) {
                if let Err(e) = gate.set_mode(Mode::Pass, epoch, None) {
                    left.push(format!("ending the hold: {e}"));
                }
                if let Err(e) = Gate::settle() {
                    left.push(format!("ending the hold: {e}"));
                }
                settled(READING);
            }
            hold::forget(gate);
            let done = self.inbox().done;
            info!(mv = %self.mv, ?done, "held packets");
        }
        self.over.store(true, Ordering::SeqCst);
        self.taps().clear();
        self.changed.notify_all();
        left
    }
}

/// Where packets lie that peers think delivered.
pub(super) fn owned(mv: MoveId) -> PathBuf {
    paths::run(mv).join("owned")
}

/// All of them are delivered: an agent that opens once more finds none. What failed, in words.
pub(super) fn forget_owned(mv: MoveId) -> Option<String> {
    let path = owned(mv);
    let removed = Store::remove(&path);
    Some(format!("removing {}: {}", path.display(), removed.err()?))
}

impl Steps {
    /// TAPs for the links whose gate has just been closed. Without them the move goes on, and its packets are dropped.
    pub(super) fn prepare_hold(&self, question: &Question) {
        let prepared = {
            let state = self.state();
            let Some(gate) = &state.gate else { return };
            let points: Vec<_> = gate.points().cloned().collect();
            Hold::prepare(self.id, &state.links, question, &points)
        };
        match prepared {
            Ok(hold) => self.state().hold = Some(Arc::new(hold)),
            Err(e) => self.warn(format!(
                "packets of the blackout are dropped, for they cannot be held at the target: {e:#}"
            )),
        }
    }

    /// Takes the source's held packets.
    pub fn receive_held(&self, pipe: Pipe) {
        let (id, hold) = (self.id, self.state().hold.clone());
        self.handle.spawn(async move {
            let Some(hold) = hold else {
                return warn!(mv = %id, "held packets came where nothing can be held");
            };
            let connected = hold.inbox().connect();
            let number = match connected {
                Ok(number) => number,
                Err(e) => return info!(mv = %id, "connection for held packets: {e:#}"),
            };
            if let Err(e) = hold.receive(number, pipe).await {
                info!(mv = %id, "connection for held packets: {e:#}");
                hold.gone(number);
            }
        });
    }

    /// Opens the gate: in order where packets are held, at once where none are.
    pub(super) fn open_gate(
        &self,
        gate: &Gate,
        hold: Option<&Arc<Hold>>,
        warnings: &mut Vec<String>,
    ) -> Result<bool> {
        info!(mv = %self.id, at_us = unix_us(), "the gate opens");
        match hold.map(|hold| hold.open(gate, self.epoch)) {
            Some(Ok(true)) => return Ok(true),
            Some(Err(e)) => {
                warnings.push(format!("held packets are dropped: {e:#}"));
                hold::forget(gate);
            }
            Some(Ok(false)) | None => {}
        }
        gate.set_mode(Mode::Pass, self.epoch, None)?;
        Ok(false)
    }

    /// The announcement is out.
    pub(super) fn hold_announced(hold: Option<&Arc<Hold>>) {
        if let Some(hold) = hold {
            hold.announced();
        }
    }

    /// The sockets are open: what is held may come.
    pub(super) fn deliver_held(
        &self,
        gate: &Gate,
        hold: Option<&Arc<Hold>>,
        netns: &Path,
        promised: Option<Promised>,
        warnings: &mut Vec<String>,
    ) {
        let Some(hold) = hold else { return };
        if let Err(e) = hold.deliver(gate.order(), self.epoch, netns, promised) {
            warnings.push(format!("held packets are dropped: {e:#}"));
            if let Err(e) = gate.set_mode(Mode::Pass, self.epoch, None) {
                warnings.push(format!("opening the gate: {e}"));
            }
            hold::forget(gate);
        }
    }

    /// Ends the hold before its gate goes.
    pub(super) fn end_hold(&self, gate: Option<&Gate>) -> Vec<String> {
        let hold = self.state().hold.take();
        hold.map_or_else(Vec::new, |hold| hold.finish(gate, self.epoch))
    }
}
