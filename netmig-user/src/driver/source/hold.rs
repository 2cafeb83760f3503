//! The hold at the source: packets of the blackout are kept and shipped as they come.
mod keeping;
mod kept;
mod steps;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use netmig_common::Mode;
use netmig_core::{
    frame::{Frame, HoldBegin, HoldMark, HoldPoint},
    id::{Epoch, MoveId},
    proto::Hello,
    report::Packets,
};
use tokio::sync::Notify;
use tracing::warn;

use self::{
    keeping::Keeping,
    kept::{Ended, Kept, Next},
};
use super::super::hold::{self, Delivery, LOOK, OPENING, Renewed, Tap};
use crate::{
    gate::{
        Gate, Point,
        hold::{Limit, Order},
    },
    sock::Live,
    wire::{dial::Dialer, pipe::Pipe},
};

/// Between two attempts to open the connection.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the target may take, once it has heard that nothing more comes, to say what it did.
const ACCOUNT: Duration = Duration::from_secs(3);
/// How long the target may take to open and to announce, once it has released.
const ANNOUNCING: Duration = Duration::from_secs(2);
/// How long packets that were redirected before a mark may take to be read.
const READING: Duration = Duration::from_millis(20);
/// Between two looks at a delivery.
const GLANCE: Duration = Duration::from_millis(1);
/// How long the target may take to store what peers were promised, once nothing more is.
const STORING: Duration = Duration::from_secs(2);
/// How often peers that send may send a segment. Shorter than any retransmission timeout of Linux (TCP_RTO_MIN).
const TRICKLE: Duration = Duration::from_millis(150);
/// By then a peer's timer may have expired.
const LATE: Duration = Duration::from_millis(190);

/// The source's hold of one move.
pub(super) struct Hold {
    shared: Arc<Shared>,
    points: Vec<(u16, Point)>,
}

struct Shared {
    mv: MoveId,
    order: Order,
    kept: Mutex<Kept>,
    /// For threads that wait.
    changed: Condvar,
    /// For the task that ships.
    news: Notify,
    /// The readers end.
    over: AtomicBool,
    /// The container's stack has sent its last by then.
    still: Arc<OnceLock<Instant>>,
}

/// A delivery at the source, under way.
pub(super) struct Returning {
    thread: thread::JoinHandle<()>,
    hold: Arc<Hold>,
    until: Arc<Until>,
    /// What went otherwise than it should already.
    left: Vec<String>,
}

/// What a delivery at the source hears of.
#[derive(Default)]
struct Until {
    /// The container runs.
    runs: AtomicBool,
    /// Nothing is redirected any more.
    last: AtomicBool,
}

impl Hold {
    /// Registers a TAP at each of the gate's points that takes one, and reads them from now on: the gate, in mode `pass`, redirects
    /// nothing yet.
    ///
    /// # Errors
    /// A TAP cannot be made.
    pub(super) fn begin(mv: MoveId, gate: &Gate, taps: Vec<Tap>, limit: Limit) -> Result<Self> {
        for tap in &taps {
            gate.hold(&tap.point, &tap.reader)?;
        }
        let shared = Arc::new(Shared {
            mv,
            order: gate.order(),
            kept: Mutex::new(Kept::new(limit)),
            changed: Condvar::new(),
            news: Notify::new(),
            over: AtomicBool::new(false),
            still: Arc::default(),
        });
        let points = taps.iter().map(|t| (t.link, t.point.clone())).collect();
        for tap in taps {
            let shared = shared.clone();
            thread::spawn(move || shared.read(tap));
        }
        Ok(Self { shared, points })
    }

    /// The task that ships, on a connection of its own. It ends with the move.
    pub(super) async fn ship(self: Arc<Self>, dialer: Dialer, hello: Hello, begin: HoldBegin) {
        loop {
            let carried = self.connect(&dialer, &hello, begin).await;
            let again = self.shared.kept().down();
            self.shared.changed.notify_all();
            let Err(e) = carried else { return };
            if !again {
                return warn!(mv = %self.shared.mv, "held packets: {e:#}");
            }
            warn!(mv = %self.shared.mv, "held packets, once more from the first one on: {e:#}");
            tokio::time::sleep(AGAIN).await;
            if self.shared.kept().local {
                return;
            }
        }
    }

    async fn connect(&self, dialer: &Dialer, hello: &Hello, begin: HoldBegin) -> Result<()> {
        let (mut pipe, carrier) = Pipe::of_connection(dialer.dial()?);
        self.carry(&mut pipe, hello, begin)
            .await
            .with_context(|| carrier.explain("their connection"))
    }

    async fn carry(&self, pipe: &mut Pipe, hello: &Hello, begin: HoldBegin) -> Result<()> {
        pipe.send(Frame::Hello(Box::new(hello.clone()))).await?;
        pipe.send(Frame::HoldBegin(begin)).await?;
        self.shared.kept().up = true;
        loop {
            let next = self.shared.kept().next();
            match next {
                Next::Send(frame) => {
                    pipe.send(frame).await?;
                    self.shared.changed.notify_all();
                    continue;
                }
                Next::Over => return Ok(()),
                Next::Wait => {}
            }
            tokio::select! {
                () = self.shared.news.notified() => {}
                frame = pipe.receive() => match frame? {
                    Some(Frame::HoldMark(HoldMark { point: HoldPoint::Announced, .. })) => {
                        self.shared.kept().announced = Some(self.shared.order.redirected());
                    }
                    Some(Frame::HoldMark(HoldMark { point: HoldPoint::Stored, packets })) => {
                        self.shared.kept().stored = Some(packets);
                        self.shared.changed.notify_all();
                    }
                    Some(Frame::HoldDone(account)) => {
                        self.shared.kept().account = Some(account);
                        return Ok(());
                    }
                    Some(_) => bail!("the target sent a frame that does not belong on this connection"),
                    None => bail!("the target closed the connection"),
                },
            }
        }
    }

    /// The target stores what it is sent, so that peers can be answered.
    pub(super) fn can_keep(&self) -> bool {
        self.shared.kept().stored.is_some()
    }

    /// Peers are answered from now on, and what they send is owned, as far as these sockets take it.
    ///
    /// # Errors
    /// What is owned cannot be stored, or nothing can be sent in the container's name.
    pub(super) fn keep(&self, gate: &Gate, live: Vec<Live>, path: &Path) -> Result<()> {
        let mut answerers = HashMap::new();
        for (link, point) in &self.points {
            answerers.insert(*link, gate.answerer(point)?);
        }
        let mut keeping = Keeping::begin(
            live,
            answerers,
            &self.shared.order,
            &self.shared.still,
            path,
        )?;
        let mut kept = self.shared.kept();
        if kept.local || kept.granted {
            return Ok(());
        }
        if kept.stored.is_none() {
            bail!("the target stores nothing");
        }
        keeping.take_all(&kept.queue);
        kept.keeping = Some(keeping);
        drop(kept);
        let shared = self.shared.clone();
        thread::spawn(move || shared.trickle());
        Ok(())
    }

    /// The container's stack sends nothing any more, and its sockets have not been dumped: its clock as its peers see it stands until it goes
    /// on at the target.
    pub(super) fn still(&self) -> Instant {
        *self.shared.still.get_or_init(Instant::now)
    }

    /// The sockets once more.
    pub(super) fn keep_again(&self, live: &[Live], exact: bool) {
        let mut kept = self.shared.kept();
        let held = kept.queue.len() as u64;
        if let Some(keeping) = &mut kept.keeping {
            keeping.again(live, exact, held);
        }
    }

    /// Promises nothing any more, and waits until the target has stored all that was promised.
    ///
    /// # Errors
    /// It has not done so in time.
    pub(super) fn seal(&self) -> Result<()> {
        let until = Instant::now() + STORING;
        let mut kept = self.shared.kept();
        let Some(keeping) = &mut kept.keeping else {
            return Ok(());
        };
        keeping.seal();
        let needed = keeping.needed;
        while kept.stored.unwrap_or(0) < needed {
            if Instant::now() >= until {
                bail!(
                    "the target has not stored all that peers were promised: {} of {needed} packets",
                    kept.stored.unwrap_or(0)
                );
            }
            kept = self.shared.wait(kept, LOOK);
        }
        Ok(())
    }

    /// The target may deliver from now on.
    pub(super) fn granted(&self) {
        self.shared.kept().granted = true;
    }

    /// The container lives at the target, or will in a moment: waits until nothing comes here any more, as far as the target can tell.
    /// Until then the links here must stay.
    pub(super) fn hand_over(&self) {
        let until = Instant::now() + ANNOUNCING;
        let mut kept = self.shared.kept();
        while kept.up && !kept.answered && Instant::now() < until {
            kept = self.shared.wait(kept, LOOK);
        }
    }

    /// Forwards nothing any more, waits for the target's account and ends the readers. What went otherwise than it should, in words.
    pub(super) fn close(&self, gate: Option<&Gate>) -> Vec<String> {
        let until = Instant::now() + ACCOUNT;
        let mut kept = self.shared.kept();
        kept.ended = Ended::ToSay;
        self.shared.news.notify_one();
        while kept.up && kept.account.is_none() && Instant::now() < until {
            kept = self.shared.wait(kept, LOOK);
        }
        let mut left = kept.told();
        left.extend(kept.accounted());
        drop(kept);
        self.stop(gate);
        left
    }

    /// Nothing is held any more.
    pub(super) fn stop(&self, gate: Option<&Gate>) {
        if let Some(gate) = gate {
            hold::forget(gate);
        }
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.kept().local = true;
        self.shared.news.notify_one();
    }

    /// Delivers to the container here what was held, behind the gate that has just been set to open: it stays at that for as long as the container
    /// takes to run ([`Returning::finish`]).
    pub(super) fn return_here(
        self: Arc<Self>,
        netns: &Path,
        pids: Vec<i32>,
        epoch: Epoch,
    ) -> Result<Returning> {
        let keeping = {
            let mut kept = self.shared.kept();
            kept.local = true;
            kept.end_keeping()
        };
        self.shared.news.notify_one();
        let injectors = hold::injectors(self.points.iter().map(|(link, point)| (*link, point)))?;
        let mut delivery = Delivery::new(injectors, self.shared.order.clone(), netns);
        let mut left = Vec::new();
        if let Some(keeping) = keeping {
            let mut promised = keeping.promised(netns, pids);
            left = promised.make_room();
            drop(self.give_all(&mut delivery));
            left.extend(promised.keep(&mut delivery));
        }
        let until = Arc::new(Until::default());
        let (hold, ends) = (self.clone(), until.clone());
        let thread = thread::spawn(move || hold.deliver(&mut delivery, epoch, &ends));
        Ok(Returning {
            thread,
            hold: self,
            until,
            left,
        })
    }

    fn give_all(&self, delivery: &mut Delivery) -> MutexGuard<'_, Kept> {
        let mut kept = self.shared.kept();
        while let Some((link, packet)) = kept.queue.pop() {
            drop(kept);
            delivery.give(link, packet, true);
            kept = self.shared.kept();
        }
        kept
    }

    fn deliver(&self, delivery: &mut Delivery, epoch: Epoch, until: &Until) {
        let mut renewed = Renewed::begin(epoch);
        loop {
            renewed.go_on(&self.shared.order);
            delivery.nobody_reads(!until.runs.load(Ordering::SeqCst));
            drop(self.give_all(delivery));
            delivery.go_on();
            let mut kept = self.shared.kept();
            kept.local_replayed = delivery.replayed();
            kept.local_dropped = delivery.dropped();
            if kept.queue.is_empty() {
                if delivery.is_idle() && until.last.load(Ordering::SeqCst) {
                    return;
                }
                drop(self.shared.wait(kept, GLANCE));
            }
        }
    }

    /// What was done here and at the target.
    pub(super) fn packets(&self) -> Packets {
        let kept = self.shared.kept();
        let account = kept.account.unwrap_or_default();
        let lost: u64 = account.dropped.iter().sum();
        Packets {
            held: kept.read - kept.queue.dropped().total() + account.direct,
            replayed: kept.local_replayed + account.replayed,
            dropped: kept.queue.dropped().total() + kept.local_dropped.total() + lost,
            answered: kept.answered(),
            owned: kept.owned(),
        }
    }
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trickle(&self) {
        let mut last = Instant::now();
        loop {
            thread::sleep(TRICKLE);
            let mut kept = self.kept();
            let late = last.elapsed() > LATE;
            last = Instant::now();
            if kept.local || kept.granted || self.over.load(Ordering::SeqCst) {
                return;
            }
            let fits = !kept.queue.is_half_full();
            let Some(keeping) = &mut kept.keeping else {
                return;
            };
            keeping.trickle(fits, late);
        }
    }

    fn wait<'a>(&self, kept: MutexGuard<'a, Kept>, limit: Duration) -> MutexGuard<'a, Kept> {
        self.changed
            .wait_timeout(kept, limit)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn read(&self, mut tap: Tap) {
        let mut waits = false;
        while !self.over.load(Ordering::SeqCst) {
            // An answer stands for all that is there to be read, and waits for nothing else.
            let limit = if waits { Duration::ZERO } else { LOOK };
            match tap.reader.next(limit) {
                Ok(Some(packet)) => {
                    let mut kept = self.kept();
                    if !kept.hold(tap.link, packet) {
                        self.order.done(1);
                    }
                    waits = kept.keeping.as_ref().is_some_and(Keeping::waits);
                    drop(kept);
                    self.news.notify_one();
                    self.changed.notify_all();
                }
                Ok(None) => {
                    if let Some(keeping) = &mut self.kept().keeping {
                        keeping.flush();
                    }
                    waits = false;
                }
                Err(e) => return warn!(mv = %self.mv, "the hold ends: {e}"),
            }
        }
    }
}

impl Returning {
    /// To be called once the container runs: waits until all is in, lets the gate pass, and ends the hold. What went otherwise, in words.
    pub(super) fn finish(self, gate: &Gate, epoch: Epoch) -> Vec<String> {
        self.until.runs.store(true, Ordering::SeqCst);
        let mut left = self.left;
        let order = &self.hold.shared.order;
        let settled = |limit| {
            let until = Instant::now() + limit;
            while order.pending() > 0 && Instant::now() < until {
                thread::sleep(GLANCE);
            }
        };
        settled(OPENING);
        if let Err(e) = gate
            .set_mode(Mode::Pass, epoch, None)
            .and_then(|()| Gate::settle())
        {
            left.push(format!("ending the hold: {e}"));
        }
        // What a program was just redirecting.
        settled(READING);
        self.until.last.store(true, Ordering::SeqCst);
        self.hold.shared.changed.notify_all();
        if self.thread.join().is_err() {
            left.push("the thread that delivers held packets panicked".to_owned());
        }
        left.extend(self.hold.shared.kept().told());
        let dropped = self.hold.shared.kept().local_dropped;
        if dropped.total() > 0 {
            left.push(format!("{dropped} held packets could not be delivered"));
        }
        self.hold.stop(Some(gate));
        left
    }
}
