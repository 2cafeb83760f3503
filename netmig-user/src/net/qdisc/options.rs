//! Settings of disciplines in the form in which they are taken, where they are shown in another.
use crate::net::{
    attr::{Attrs, Message, NLA_F_NESTED, u32_at},
    netlink::Error,
    uapi::TCA_OPTIONS,
};

const TCA_HTB_INIT: u16 = 2;
const TCA_CODEL_TARGET: u16 = 1;
const TCA_CODEL_INTERVAL: u16 = 3;
const TCA_CODEL_CE_THRESHOLD: u16 = 5;
const TCA_FQ_CODEL_TARGET: u16 = 1;
const TCA_FQ_CODEL_INTERVAL: u16 = 3;
const TCA_FQ_CODEL_CE_THRESHOLD: u16 = 7;

/// Number of the attribute in which they are given.
pub fn number(kind: &str) -> u16 {
    match kind {
        // The others' parsers came before that flag was asked for (fq_pie_change(): nla_parse_nested()).
        "fq_pie" => TCA_OPTIONS | NLA_F_NESTED,
        _ => TCA_OPTIONS,
    }
}

/// What must be given to have what is shown.
pub fn taken(kind: &str, shown: &[u8]) -> Result<Vec<u8>, Error> {
    match kind {
        "htb" => each(shown, |number, value| {
            if number == TCA_HTB_INIT && value.len() >= 20 {
                // struct tc_htb_glob: the whole version (HTB_VER) is shown, the major one is taken (htb_init()); a count of packets is shown.
                let version = u32_at(value, 0) >> 16;
                value[..4].copy_from_slice(&version.to_ne_bytes());
                value[16..20].fill(0);
            }
        }),
        "codel" => microseconds(
            shown,
            [TCA_CODEL_TARGET, TCA_CODEL_INTERVAL, TCA_CODEL_CE_THRESHOLD],
        ),
        "fq_codel" => microseconds(
            shown,
            [
                TCA_FQ_CODEL_TARGET,
                TCA_FQ_CODEL_INTERVAL,
                TCA_FQ_CODEL_CE_THRESHOLD,
            ],
        ),
        // struct tc_sfq_qopt: more flows than its limit are shown, if nobody has said how many, and not taken (sfq_change()).
        "sfq" if shown.len() >= 20 => {
            let mut options = shown.to_vec();
            let flows = u32_at(shown, 16).min(u32_at(shown, 8));
            options[16..20].copy_from_slice(&flows.to_ne_bytes());
            Ok(options)
        }
        _ => Ok(shown.to_vec()),
    }
}

/// Kept in units of 1024 ns (codel_time_t), and rounded down both when they are taken and when they are shown: one more is what gives the
/// same again.
fn microseconds(shown: &[u8], times: [u16; 3]) -> Result<Vec<u8>, Error> {
    each(shown, |number, value| {
        if times.contains(&number) && value.len() == 4 {
            let time = u32_at(value, 0).saturating_add(1);
            value.copy_from_slice(&time.to_ne_bytes());
        }
    })
}

fn each(shown: &[u8], change: impl Fn(u16, &mut [u8])) -> Result<Vec<u8>, Error> {
    let mut taken = Message::default();
    for attr in Attrs(shown) {
        let attr = attr?;
        let mut value = attr.value.to_vec();
        change(attr.kind, &mut value);
        taken = taken.bytes(attr.kind, &value);
    }
    Ok(taken.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// codel_change() and codel_dump().
    fn shown_after(taken: u32) -> u32 {
        let time = (u64::from(taken) * 1000) >> 10;
        ((time << 10) / 1000) as u32
    }

    #[test]
    fn a_time_of_codel_does_not_dwindle() {
        let message = |time| {
            Message::default()
                .u32(TCA_CODEL_TARGET, time)
                .u32(2, 900)
                .as_bytes()
                .to_vec()
        };
        for time in (0..5000).chain([100_000, 999_999, 1_000_000]) {
            let shown = shown_after(time);
            assert_eq!(shown_after(shown + 1), shown, "{time}");
            let taken = taken("codel", &message(shown)).unwrap();
            assert_eq!(taken, message(shown + 1));
        }
    }

    #[test]
    fn sfq_takes_as_many_flows_as_its_limit() {
        let options = |flows: u32| [1600, 10, 127, 512, flows].map(u32::to_ne_bytes).concat();
        assert_eq!(taken("sfq", &options(128)).unwrap(), options(127));
        assert_eq!(taken("sfq", &options(99)).unwrap(), options(99));
    }
}
