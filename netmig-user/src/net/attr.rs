//! Messages of netlink as a fixed header and attributes: reading and writing them.
//!
//! Attributes stay numbers and bytes until the file about their object reads them: a dump must not fail as a whole on an attribute that
//! is newer than this program, it must say so (`not_carried`).
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netmig_core::image::v1::net::{Family, Mac};

use super::netlink::Error;

const NLA_TYPE_MASK: u16 = 0x3fff;
/// Says of an attribute that others are in it.
pub const NLA_F_NESTED: u16 = 0x8000;

/// Attributes in the order of the message.
#[derive(Clone, Copy)]
pub struct Attrs<'a>(pub &'a [u8]);

/// One attribute.
#[derive(Clone, Copy)]
pub struct Attr<'a> {
    /// Its number, without the flags.
    pub kind: u16,
    /// Its content.
    pub value: &'a [u8],
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attr<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<4>()?;
        let length = usize::from(u16_at(header, 0));
        if length < 4 || length > self.0.len() {
            let left = self.0.len();
            self.0 = &[];
            return Some(Err(Error::Malformed(format!(
                "attribute of {length} bytes with {left} left"
            ))));
        }
        let attr = Attr {
            kind: u16_at(header, 2) & NLA_TYPE_MASK,
            value: &self.0[4..length],
        };
        self.0 = &self.0[align(length).min(self.0.len())..];
        Some(Ok(attr))
    }
}

/// As [`Attrs`], each as its number, the flags of the number (some parsers ask for NLA_F_NESTED) and its content.
pub struct Raw<'a>(pub &'a [u8]);

impl<'a> Iterator for Raw<'a> {
    type Item = Result<(u16, u16, &'a [u8]), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let before = self.0;
        let mut attrs = Attrs(before);
        let attr = attrs.next()?;
        self.0 = attrs.0;
        let flags = |before| u16_at(before, 2) & !NLA_TYPE_MASK;
        Some(attr.map(|attr| (attr.kind, flags(before), attr.value)))
    }
}

impl<'a> Attr<'a> {
    fn fixed<const N: usize>(&self) -> Result<[u8; N], Error> {
        self.value.try_into().map_err(|_| {
            Error::Malformed(format!(
                "attribute {} has {} bytes, {N} expected",
                self.kind,
                self.value.len()
            ))
        })
    }

    /// One byte.
    pub fn u8(&self) -> Result<u8, Error> {
        self.fixed().map(u8::from_ne_bytes)
    }

    /// Two bytes in the host's order.
    pub fn u16(&self) -> Result<u16, Error> {
        self.fixed().map(u16::from_ne_bytes)
    }

    /// Four bytes in the host's order.
    pub fn u32(&self) -> Result<u32, Error> {
        self.fixed().map(u32::from_ne_bytes)
    }

    /// Four bytes in network order.
    pub fn be32(&self) -> Result<u32, Error> {
        self.fixed().map(u32::from_be_bytes)
    }

    /// Two bytes in network order.
    pub fn be16(&self) -> Result<u16, Error> {
        self.fixed().map(u16::from_be_bytes)
    }

    /// Four bytes, signed.
    pub fn i32(&self) -> Result<i32, Error> {
        self.fixed().map(i32::from_ne_bytes)
    }

    /// Eight bytes in network order.
    pub fn be64(&self) -> Result<u64, Error> {
        self.fixed().map(u64::from_be_bytes)
    }

    /// Two numbers of two bytes each.
    pub fn pair16(&self) -> Result<(u16, u16), Error> {
        self.fixed::<4>().map(|b| (u16_at(&b, 0), u16_at(&b, 2)))
    }

    /// Two numbers of four bytes each.
    pub fn pair32(&self) -> Result<(u32, u32), Error> {
        self.fixed::<8>().map(|b| (u32_at(&b, 0), u32_at(&b, 4)))
    }

    /// Text up to the terminating zero.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value.split(|b| *b == 0).next().unwrap_or_default())
            .into_owned()
    }

    /// An address of either family.
    pub fn ip(&self) -> Result<IpAddr, Error> {
        match self.value.len() {
            4 => self.fixed::<4>().map(IpAddr::from),
            _ => self.fixed::<16>().map(IpAddr::from),
        }
    }

    /// A MAC, if it has six bytes.
    pub fn mac(&self) -> Option<Mac> {
        self.value.try_into().ok().map(Mac)
    }

    /// The attributes inside.
    pub fn nested(&self) -> Attrs<'a> {
        Attrs(self.value)
    }
}

/// A request body, or the content of a nested attribute, under construction.
#[derive(Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// Begins with the fixed header.
    pub fn new(header: &[u8]) -> Self {
        Self(header.to_vec())
    }

    /// struct ifinfomsg.
    pub fn link(index: u32, flags: u32, change: u32) -> Self {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..12].copy_from_slice(&flags.to_ne_bytes());
        header[12..16].copy_from_slice(&change.to_ne_bytes());
        Self::new(&header)
    }

    /// Appends raw bytes (the header inside VETH_INFO_PEER, a struct rtnexthop).
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Appends an attribute.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // No attribute that netmig writes comes near the 64 KiB of the length field: names, addresses, next hops.
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    /// One byte.
    pub fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    /// Two bytes in the host's order.
    pub fn u16(self, kind: u16, value: u16) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Four bytes in the host's order.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Two bytes in network order.
    pub fn be16(self, kind: u16, value: u16) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Four bytes in network order.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Text with its terminating zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// An address.
    pub fn ip(self, kind: u16, value: IpAddr) -> Self {
        match value {
            IpAddr::V4(a) => self.bytes(kind, &a.octets()),
            IpAddr::V6(a) => self.bytes(kind, &a.octets()),
        }
    }

    /// Attributes inside an attribute.
    pub fn nested(self, kind: u16, inner: &Message) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// Appends what `f` appends, if there is a value.
    pub fn maybe<T>(self, value: Option<T>, f: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => f(self, value),
            None => self,
        }
    }

    /// Its bytes so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// AF_INET or AF_INET6.
pub fn af(family: Family) -> u8 {
    // Both are below 256.
    match family {
        Family::Inet => libc::AF_INET as u8,
        Family::Inet6 => libc::AF_INET6 as u8,
    }
}

/// The family of a header's byte, if it is one that an image carries.
pub fn family(af: u8) -> Option<Family> {
    match i32::from(af) {
        libc::AF_INET => Some(Family::Inet),
        libc::AF_INET6 => Some(Family::Inet6),
        _ => None,
    }
}

/// The address without any bit set.
pub fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::Inet => Ipv4Addr::UNSPECIFIED.into(),
        Family::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Two bytes of a fixed header in the host's order.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// Four bytes of a fixed header in the host's order.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Attributes and messages begin at multiples of four bytes.
pub fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put() {
        let inner = Message::default().u8(1, 7).text(2, "eth0");
        let message = Message::default()
            .u32(3, 0x0102_0304)
            .nested(4, &inner)
            .ip(5, "2001:db8::1".parse().unwrap());
        let attrs: Vec<_> = Attrs(message.as_bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(attrs.iter().map(|a| a.kind).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(attrs[0].u32().unwrap(), 0x0102_0304);
        let nested: Vec<_> = attrs[1].nested().collect::<Result<_, _>>().unwrap();
        assert_eq!(
            (nested[0].u8().unwrap(), nested[1].text().as_str()),
            (7, "eth0")
        );
        assert_eq!(attrs[2].ip().unwrap().to_string(), "2001:db8::1");
    }

    #[test]
    fn a_length_beyond_the_buffer_is_an_error_and_ends_the_walk() {
        let mut attrs = Attrs(&[9, 0, 1, 0, 1, 2, 3, 4]);
        assert!(matches!(attrs.next(), Some(Err(Error::Malformed(_)))));
        assert!(attrs.next().is_none());
        assert!(matches!(
            Attrs(&[3, 0, 1, 0]).next(),
            Some(Err(Error::Malformed(_)))
        ));
    }
}
