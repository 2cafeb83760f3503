//! The control link of a move: a conversation that outlives its connections.
//!
//! The source dials, again and again until it is told to stop; the target takes what comes. Both run the same loop over one connection.
use std::time::Duration;

use netmig_core::{
    frame::Frame,
    id::{Life, MoveId},
    link::{Conversation, Met, Refused},
    proto::{Channel, Hello, Word},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{debug, warn};

use super::{
    dial::Dialer,
    pipe::{Pipe, Spoken},
};

/// First and longest pause between two attempts to dial.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What the link tells the driver.
#[derive(Debug)]
pub enum LinkEvent<In> {
    /// A connection stands.
    Up,
    /// The other end speaks for the first time, or in a new life.
    Word(Word),
    /// A message, once and in order.
    Message(In),
    /// The connection broke; why, in words.
    Down(String),
}

/// The driver's hand on the link. Dropping it ends the link.
pub struct Link<Out> {
    outgoing: mpsc::UnboundedSender<Order<Out>>,
    word: watch::Sender<Word>,
    met: watch::Receiver<Option<Life>>,
}

enum Order<Out> {
    Send(Out),
    Take(Box<(Hello, Pipe)>),
    Flush(oneshot::Sender<()>),
}

impl<Out> Link<Out>
where
    Out: Clone + Spoken + Send + Sync + 'static,
{
    /// The source's link: dials.
    pub fn dialling<In>(
        mv: MoveId,
        life: Life,
        word: Word,
        dialer: Dialer,
        news: impl Fn(LinkEvent<In>) + Send + Sync + 'static,
    ) -> Self
    where
        In: Spoken + Send + 'static,
    {
        let (outgoing, orders) = mpsc::unbounded_channel();
        let (tx, rx) = watch::channel(word);
        let (meets, met) = watch::channel(None);
        tokio::spawn(
            Loop {
                conversation: Conversation::new(mv, life),
                orders,
                word: rx,
                meets,
                news,
                pending: Vec::new(),
            }
            .dial(dialer),
        );
        Self {
            outgoing,
            word: tx,
            met,
        }
    }

    /// The target's link: waits for connections handed over by [`Self::take`].
    pub fn waiting<In>(
        mv: MoveId,
        life: Life,
        word: Word,
        news: impl Fn(LinkEvent<In>) + Send + Sync + 'static,
    ) -> Self
    where
        In: Spoken + Send + 'static,
    {
        let (outgoing, orders) = mpsc::unbounded_channel();
        let (tx, rx) = watch::channel(word);
        let (meets, met) = watch::channel(None);
        tokio::spawn(
            Loop {
                conversation: Conversation::new(mv, life),
                orders,
                word: rx,
                meets,
                news,
                pending: Vec::new(),
            }
            .wait(),
        );
        Self {
            outgoing,
            word: tx,
            met,
        }
    }

    /// Queues a message; it is kept until the other end has it.
    pub fn send(&self, message: Out) {
        self.order(Order::Send(message));
    }

    /// A new connection that the other end has opened; it replaces the one before.
    pub fn take(&self, hello: Hello, pipe: Pipe) {
        self.order(Order::Take(Box::new((hello, pipe))));
    }

    /// What the journal says from now on; the next Hello carries it.
    pub fn set_word(&self, word: Word) {
        self.word.send_replace(word);
    }

    /// The life of the other end that has spoken last on this link.
    #[must_use]
    pub fn peer(&self) -> Option<Life> {
        *self.met.borrow()
    }

    /// Waits until the other end has every message, at most `limit`. False if it has not.
    pub async fn flush(&self, limit: Duration) -> bool {
        let (tx, rx) = oneshot::channel();
        self.order(Order::Flush(tx));
        matches!(tokio::time::timeout(limit, rx).await, Ok(Ok(())))
    }

    fn order(&self, order: Order<Out>) {
        if self.outgoing.send(order).is_err() {
            // The loop ends only when this handle is dropped, or by a panic that has been logged.
            warn!("the control link is gone");
        }
    }
}

struct Loop<Out, In, News> {
    conversation: Conversation<Out, In>,
    orders: mpsc::UnboundedReceiver<Order<Out>>,
    word: watch::Receiver<Word>,
    meets: watch::Sender<Option<Life>>,
    news: News,
    pending: Vec<oneshot::Sender<()>>,
}

/// Why a connection's loop ended.
enum Ended {
    /// The driver has let go.
    Dropped,
    /// The connection broke.
    Broken(String),
    /// A newer connection replaces it.
    Replaced(Box<(Hello, Pipe)>),
}

impl<Out, In, News> Loop<Out, In, News>
where
    Out: Clone + Spoken + Send + Sync + 'static,
    In: Spoken + Send + 'static,
    News: Fn(LinkEvent<In>) + Send + Sync + 'static,
{
    async fn dial(mut self, dialer: Dialer) {
        let mut pause = REDIAL.0;
        loop {
            let begun = Instant::now();
            let why = match dialer.dial() {
                Err(e) => e.to_string(),
                Ok(connection) => {
                    let (mut pipe, carrier) = Pipe::of_connection(connection);
                    let why = match self.open(&mut pipe).await {
                        Ok(hello) => match self.converse(hello, &mut pipe).await {
                            Ended::Dropped => return,
                            Ended::Broken(why) => why,
                            Ended::Replaced(..) => {
                                "a connection came in where this end dials".to_owned()
                            }
                        },
                        Err(why) => why,
                    };
                    carrier.explain(why)
                }
            };
            self.conversation.down();
            (self.news)(LinkEvent::Down(why));
            if begun.elapsed() > REDIAL.1 {
                pause = REDIAL.0;
            }
            // Orders given meanwhile are queued; only the handle's drop ends the pause.
            let until = Instant::now() + pause;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    order = self.orders.recv() => match order {
                        None => return,
                        Some(order) => self.queue(order),
                    },
                }
            }
            pause = (pause * 2).min(REDIAL.1);
        }
    }

    async fn wait(mut self) {
        loop {
            let Some(order) = self.orders.recv().await else {
                return;
            };
            let Order::Take(mut taken) = order else {
                self.queue(order);
                continue;
            };
            loop {
                let (hello, pipe) = &mut *taken;
                let why = match self.converse_accepted(hello, pipe).await {
                    Ended::Dropped => return,
                    Ended::Broken(why) => why,
                    Ended::Replaced(next) => {
                        taken = next;
                        continue;
                    }
                };
                self.conversation.down();
                (self.news)(LinkEvent::Down(why));
                break;
            }
        }
    }

    fn queue(&mut self, order: Order<Out>) {
        match order {
            Order::Send(message) => self.conversation.send(message),
            Order::Flush(done) => self.pending.push(done),
            Order::Take(..) => debug!("a connection for a link that dials itself"),
        }
    }

    /// Says Hello first and hears the answer.
    async fn open(&mut self, pipe: &mut Pipe) -> Result<Hello, String> {
        self.say_hello(pipe).await?;
        pipe.hello().await.map_err(|e| e.to_string())
    }

    async fn converse_accepted(&mut self, hello: &Hello, pipe: &mut Pipe) -> Ended {
        let met = match self.greet(hello) {
            Ok(met) => met,
            Err(refused) => {
                // Our own Hello tells the other end what does not fit.
                let told = self
                    .say_hello(pipe)
                    .await
                    .err()
                    .map(|e| format!("; and it could not be told: {e}"));
                return Ended::Broken(format!("{refused}{}", told.unwrap_or_default()));
            }
        };
        if let Err(e) = self.say_hello(pipe).await {
            return Ended::Broken(e);
        }
        self.up(met, hello);
        self.pump(pipe).await
    }

    /// Who has greeted is known before our own Hello lets the other end open more connections.
    fn greet(&mut self, hello: &Hello) -> Result<Met, Refused> {
        let met = self.conversation.greet(hello)?;
        self.meets.send_replace(self.conversation.peer());
        Ok(met)
    }

    async fn say_hello(&self, pipe: &mut Pipe) -> Result<(), String> {
        let word = *self.word.borrow();
        let hello = self
            .conversation
            .hello(env!("CARGO_PKG_VERSION"), Channel::Control, word);
        pipe.send(Frame::Hello(Box::new(hello)))
            .await
            .map_err(|e| e.to_string())
    }

    async fn converse(&mut self, hello: Hello, pipe: &mut Pipe) -> Ended {
        match self.greet(&hello) {
            Ok(met) => self.up(met, &hello),
            Err(refused) => return Ended::Broken(refused.to_string()),
        }
        self.pump(pipe).await
    }

    fn up(&self, met: Met, hello: &Hello) {
        (self.news)(LinkEvent::Up);
        if met != Met::Again {
            (self.news)(LinkEvent::Word(hello.word));
        }
    }

    /// Moves messages both ways until the connection ends.
    async fn pump(&mut self, pipe: &mut Pipe) -> Ended {
        loop {
            while let Some(message) = self.conversation.poll_transmit() {
                if let Err(e) = pipe.send(Out::frame(message)).await {
                    return Ended::Broken(e.to_string());
                }
            }
            if self.conversation.is_flushed() {
                // Nobody waits any more if the receiver is gone.
                self.pending
                    .drain(..)
                    .for_each(|done| done.send(()).unwrap_or_default());
            }
            tokio::select! {
                order = self.orders.recv() => match order {
                    None => return Ended::Dropped,
                    Some(Order::Take(next)) => return Ended::Replaced(next),
                    Some(order) => self.queue(order),
                },
                frame = pipe.receive() => {
                    let received = match frame {
                        Ok(Some(frame)) => {
                            In::spoken(frame).and_then(|m| self.conversation.receive(m).map_err(|e| e.to_string()))
                        }
                        Ok(None) => Err("the other end closed the connection".to_owned()),
                        Err(e) => Err(e.to_string()),
                    };
                    match received {
                        Ok(Some(body)) => (self.news)(LinkEvent::Message(body)),
                        Ok(None) => {}
                        Err(why) => return Ended::Broken(why),
                    }
                }
            }
        }
    }
}
