//! What the gate is told of a connection.
use netmig_common::FlowKey;

use super::hold;
use crate::{agent::local::Drain, gate::FlowScales, sock};

/// A connection as the gate knows it, and what is to be stopped of it in `drain`.
pub fn hint(flow: &sock::Flow, drain: Drain) -> (FlowKey, FlowScales) {
    let key = hold::key(flow.local, flow.peer);
    let (stop_peer, stop_container) = match drain {
        Drain::Off => (false, false),
        Drain::Out => (false, flow.sends_bulk),
        Drain::Both => (true, true),
        Drain::Auto => (flow.receives_bulk, flow.sends_bulk),
    };
    let scales = FlowScales {
        snd: flow.snd_wscale,
        rcv: flow.rcv_wscale,
        signed: flow.signed,
        stop_peer,
        stop_container,
    };
    (key, scales)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netmig_core::image::v1::sock::Endpoint;

    use super::*;

    #[test]
    fn what_is_stopped_is_what_was_asked_for() {
        let stopped = |drain, sends_bulk, receives_bulk| {
            let end = |host, port| Endpoint {
                ip: IpAddr::from([192, 0, 2, host]),
                port,
                scope: 0,
            };
            let flow = sock::Flow {
                local: end(10, 6379),
                peer: end(100, 40_000),
                snd_wscale: Some(7),
                rcv_wscale: Some(7),
                signed: false,
                unacked: 0,
                sends_bulk,
                receives_bulk,
            };
            let (_, scales) = hint(&flow, drain);
            (scales.stop_peer, scales.stop_container)
        };
        assert_eq!(stopped(Drain::Auto, true, false), (false, true));
        assert_eq!(stopped(Drain::Auto, false, true), (true, false));
        assert_eq!(stopped(Drain::Auto, false, false), (false, false));
        assert_eq!(stopped(Drain::Out, true, true), (false, true));
        assert_eq!(stopped(Drain::Both, false, false), (true, true));
        assert_eq!(stopped(Drain::Off, true, true), (false, false));
    }
}
