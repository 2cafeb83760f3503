//! Transmit queues that are longer than the kernel takes.
use netmig_core::image::v1::net::Link;

use super::netlink;

/// Packets. Linux 7.2 refuses a longer queue (ERANGE); 6.18 and older take any.
const LONGEST: u32 = 32_767;

/// Does `step` to `link`, with a shorter queue where the kernel refuses its own, which is then told in words.
pub fn fitting(
    link: &Link,
    mut step: impl FnMut(&Link) -> Result<(), netlink::Error>,
) -> Result<Option<String>, netlink::Error> {
    match step(link) {
        Err(e) if e.errno() == Some(libc::ERANGE) && link.txqueuelen > LONGEST => {
            step(&Link {
                txqueuelen: LONGEST,
                ..link.clone()
            })?;
            Ok(Some(format!(
                "link {}: its transmit queue has room for {LONGEST} packets, not {}: this kernel takes no longer one",
                link.name, link.txqueuelen
            )))
        }
        other => other.map(|()| None),
    }
}

#[cfg(test)]
mod tests {
    use netmig_core::image::v1::net::LinkKind;

    use super::*;

    fn link(txqueuelen: u32) -> Link {
        Link {
            txqueuelen,
            ..Link::new("eth0", 2, LinkKind::Veth)
        }
    }

    fn refusing(link: &Link) -> Result<(), netlink::Error> {
        match link.txqueuelen {
            0..=32_767 => Ok(()),
            _ => Err(netlink::Error::Kernel {
                errno: libc::ERANGE,
                text: "integer out of range".into(),
            }),
        }
    }

    #[test]
    fn a_queue_that_the_kernel_refuses_is_shorter_and_named() {
        let told = fitting(&link(100_000), refusing).unwrap().unwrap();
        assert!(told.contains("eth0") && told.contains("100000"), "{told}");
        assert_eq!(fitting(&link(1000), refusing).unwrap(), None);
        assert_eq!(fitting(&link(100_000), |_| Ok(())).unwrap(), None);
    }

    #[test]
    fn other_refusals_stay() {
        let out_of_range = |_: &Link| refusing(&link(100_000));
        assert!(fitting(&link(1000), out_of_range).is_err());
        let e = fitting(&link(100_000), out_of_range).unwrap_err();
        assert_eq!(e.errno(), Some(libc::ERANGE));
    }
}
