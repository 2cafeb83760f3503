//! What an image must be before anything is made of it.
use std::collections::HashSet;

use super::{
    Common, Endpoint, HalfOpen, KEY_LIMIT, Listener, Membership, QUEUE_LIMIT, SOURCE_LIMIT,
    Sockets, Tcp, TcpState,
};

/// What is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the image's {socket} is impossible: {what}")]
pub struct Impossible {
    /// Which socket.
    pub socket: String,
    /// What is wrong with it.
    pub what: &'static str,
}

impl Sockets {
    /// Checks what a restore relies on: queues fit their sequence numbers and [`QUEUE_LIMIT`], every socket has a holder, no holder and
    /// no tuple occurs twice, pairs name connections that face each other.
    ///
    /// # Errors
    /// The first socket that breaks a rule.
    pub fn check(&self) -> Result<(), Impossible> {
        let mut holders = HashSet::new();
        let mut held = |name: String, common: &Common| {
            let long = common.keys.iter().any(|key| {
                let bits = if key.ip.is_ipv4() { 32 } else { 128 };
                key.key.len() > KEY_LIMIT || key.prefix > bits
            });
            if long {
                return Err(Impossible {
                    socket: name,
                    what: "a key is longer than keys are, or its prefix than its address",
                });
            }
            let fresh = common.holders.iter().all(|h| holders.insert(*h));
            match (common.holders.is_empty(), fresh) {
                (true, _) => Err(Impossible {
                    socket: name,
                    what: "no descriptor holds it",
                }),
                (_, false) => Err(Impossible {
                    socket: name,
                    what: "its descriptor holds another socket too",
                }),
                _ => Ok(()),
            }
        };
        let mut tuples = HashSet::new();
        let mut unique = |local: Endpoint, peer: Endpoint| {
            let new = tuples.insert((local.canonical(), peer.canonical()));
            new.then_some(()).ok_or("there are two of it")
        };
        for tcp in &self.tcp {
            held(tcp.to_string(), &tcp.common)?;
            let checked = tcp.check().and_then(|()| unique(tcp.local, tcp.peer));
            checked.map_err(|what| Impossible {
                socket: tcp.to_string(),
                what,
            })?;
        }
        for connecting in &self.connecting {
            held(connecting.to_string(), &connecting.common)?;
            let (local, peer) = (connecting.local, connecting.peer);
            let wrong = |what| Impossible {
                socket: connecting.to_string(),
                what,
            };
            if local.port == 0 || peer.port == 0 {
                return Err(wrong("a port is 0"));
            }
            if local.ip.is_ipv4() != peer.ip.is_ipv4() || local.ip.is_ipv4() == connecting.common.v6
            {
                return Err(wrong("its addresses are of different families"));
            }
            if connecting.congestion.len() > 15 || connecting.common.device.len() > 15 {
                return Err(wrong("a name exceeds 15 bytes"));
            }
            unique(local, peer).map_err(wrong)?;
        }
        for tcp in &self.waiting {
            let wrong = |what| Impossible {
                socket: tcp.to_string(),
                what,
            };
            tcp.check().map_err(wrong)?;
            if !tcp.common.holders.is_empty() {
                return Err(wrong(
                    "it waits in an accept queue, and a descriptor holds it",
                ));
            }
            if !tcp.send.is_empty() || tcp.state.fin_written() {
                return Err(wrong(
                    "it waits in an accept queue, and has something to send",
                ));
            }
            unique(tcp.local, tcp.peer).map_err(wrong)?;
            if !self
                .listeners
                .iter()
                .any(|l| l.local.port == tcp.local.port)
            {
                return Err(wrong(
                    "it waits in an accept queue, and nobody listens there",
                ));
            }
        }
        for (tcp, ended) in self
            .orphans
            .iter()
            .map(|tcp| (tcp, false))
            .chain(self.time_wait.iter().map(|tcp| (tcp, true)))
        {
            let wrong = |what| Impossible {
                socket: tcp.to_string(),
                what,
            };
            tcp.check().map_err(wrong)?;
            if !tcp.common.holders.is_empty() {
                return Err(wrong(
                    "its program has closed it, and a descriptor holds it",
                ));
            }
            if !tcp.recv.is_empty() {
                return Err(wrong(
                    "its program has closed it, and it has bytes that nobody would read",
                ));
            }
            if !tcp.send.is_empty() && tcp.state == TcpState::FinWait2 {
                return Err(wrong(
                    "its FIN is acknowledged, and it has bytes to send before that",
                ));
            }
            let fits = if ended {
                tcp.state == TcpState::FinWait2
            } else {
                tcp.state.fin_written()
            };
            if !fits {
                return Err(wrong("its program has closed it, and it has sent no FIN"));
            }
            unique(tcp.local, tcp.peer).map_err(wrong)?;
        }
        for over in &self.over {
            held(over.to_string(), &over.common)?;
            let wrong = |what| Impossible {
                socket: over.to_string(),
                what,
            };
            if over.recv.len() > QUEUE_LIMIT {
                return Err(wrong("a queue exceeds the limit"));
            }
            if over.local.port == 0 || over.local.ip.is_unspecified() {
                return Err(wrong("it was connected, and has no address"));
            }
            if over.local.ip.is_ipv4() == over.common.v6 || over.common.device.len() > 15 {
                return Err(wrong(
                    "its address is of another family, or a name exceeds 15 bytes",
                ));
            }
        }
        for half in &self.half_open {
            let wrong = |what| Impossible {
                socket: half.to_string(),
                what,
            };
            half.check().map_err(wrong)?;
            unique(half.local, half.peer).map_err(wrong)?;
            let listens = |l: &Listener| l.local.port == half.local.port;
            if !self.listeners.iter().any(listens) {
                return Err(wrong("it is in a SYN queue, and nobody listens there"));
            }
        }
        for listener in &self.listeners {
            held(format!("listener {}", listener.local), &listener.common)?;
        }
        for udp in &self.udp {
            held(format!("udp {}", udp.local), &udp.common)?;
            if udp
                .queue
                .iter()
                .any(|d| d.data.len() > usize::from(u16::MAX))
            {
                return Err(Impossible {
                    socket: format!("udp {}", udp.local),
                    what: "a datagram exceeds 64 KiB",
                });
            }
            let sound = |m: &Membership| {
                m.group.is_multicast()
                    && m.sources.len() <= SOURCE_LIMIT
                    && m.sources
                        .iter()
                        .all(|s| s.is_ipv4() == m.group.is_ipv4() && !s.is_multicast())
            };
            if !udp.groups.iter().all(sound) {
                return Err(Impossible {
                    socket: format!("udp {}", udp.local),
                    what: "a multicast group is none, or has sources that are none",
                });
            }
        }
        let mut paired = HashSet::new();
        for &(a, b) in &self.pairs {
            let socket = format!("pair ({a}, {b})");
            let ends = self.tcp.get(a as usize).zip(self.tcp.get(b as usize));
            let Some((x, y)) = ends else {
                return Err(Impossible {
                    socket,
                    what: "it names a connection that is not there",
                });
            };
            if !paired.insert(a) || !paired.insert(b) {
                return Err(Impossible {
                    socket,
                    what: "an end belongs to two pairs",
                });
            }
            if x.local.canonical() != y.peer.canonical()
                || x.peer.canonical() != y.local.canonical()
            {
                return Err(Impossible {
                    socket,
                    what: "its ends do not face each other",
                });
            }
            if x.snd_una != y.rcv_nxt
                || y.snd_una != x.rcv_nxt
                || x.in_flight() != 0
                || y.in_flight() != 0
            {
                return Err(Impossible {
                    socket,
                    what: "its ends are not reconciled",
                });
            }
        }
        Ok(())
    }
}

impl HalfOpen {
    fn check(&self) -> Result<(), &'static str> {
        if self.wscale.is_some_and(|(snd, rcv)| snd > 14 || rcv > 14) {
            return Err("a window scale exceeds 14");
        }
        if self.local.ip.to_canonical().is_ipv4() != self.peer.ip.to_canonical().is_ipv4() {
            return Err("its addresses are of different families");
        }
        if self.local.port == 0 || self.peer.port == 0 {
            return Err("a port is 0");
        }
        Ok(())
    }
}

impl Tcp {
    fn check(&self) -> Result<(), &'static str> {
        let queued = self.write_seq.wrapping_sub(self.snd_una) as usize;
        if self.send.len() > QUEUE_LIMIT || self.recv.len() > QUEUE_LIMIT {
            return Err("a queue is longer than the limit");
        }
        if queued != self.send.len() {
            return Err("its send queue does not fit its sequence numbers");
        }
        if self.in_flight() as usize > queued {
            return Err("it has sent more than it has written");
        }
        if self.window.rcv_wnd > 1 << 30
            || self.window.snd_wnd > 1 << 30
            || self.peer_window > 1 << 30
        {
            return Err("a window exceeds 1 GiB");
        }
        if self.wscale.is_some_and(|(snd, rcv)| snd > 14 || rcv > 14) {
            return Err("a window scale exceeds 14");
        }
        if self.congestion.len() > 15 || self.common.device.len() > 15 {
            return Err("a name exceeds 15 bytes");
        }
        if self.local.ip.is_ipv4() != self.peer.ip.is_ipv4()
            || self.local.ip.is_ipv4() == self.common.v6
        {
            return Err("its addresses are of different families");
        }
        if self.local.port == 0 || self.peer.port == 0 {
            return Err("a port is 0");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
