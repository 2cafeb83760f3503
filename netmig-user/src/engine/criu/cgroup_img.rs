//! CRIU's image of cgroups, made to fit the target.
//!
//! Three facts make this needed. crun's `restore` parses `--manage-cgroups-mode` and then overwrites it (restore.c, seen from 1.21 to 1.29.1), so CRIU
//! always moves the tasks to the cgroup that the image names, and makes the cgroup namespace there. Under podman the container's id, and with it
//! that path, is another one at the target. And on a host that also has cgroup v1 hierarchies CRIU would make directories in each of them, and
//! fail on cpuset. So: only the unified hierarchy stays in the image, under the target's path. The rest of the message is kept byte for byte.
use std::ops::Range;

/// `IMG_COMMON_MAGIC`, `CGROUP_MAGIC` (criu/include/magic.h).
const MAGIC: [u32; 2] = [0x5456_4319, 0x5938_3330];

/// `cgroup.img` is not what CRIU 3.x and 4.x write.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("CRIU's cgroup.img cannot be read: {0}")]
pub struct Malformed(&'static str);

/// Rewrites the content of `cgroup.img`: only the unified hierarchy stays, and a path below `from` is moved below `to` (both as the images name
/// cgroups, e.g. `/libpod_parent/libpod-ID`). Without `from` and `to` the paths stay.
///
/// # Errors
/// The bytes are no cgroup image.
pub fn fit(image: &[u8], paths: Option<(&str, &str)>) -> Result<Vec<u8>, Malformed> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    if [word(0), word(4)] != MAGIC.map(Some) {
        return Err(Malformed("no such magic number"));
    }
    // A dump without cgroup sets is the two magic numbers alone.
    let Some(length) = word(8) else {
        return Ok(image.to_vec());
    };
    let body = image
        .get(12..12 + length as usize)
        .ok_or(Malformed("shorter than it says"))?;
    let mut new = Vec::with_capacity(body.len());
    for field in Fields::of(body) {
        let field = field?;
        match field.number {
            1 => put(&mut new, 1, &set(&body[field.value], paths)?),
            2 => {
                if let Some(controller) = controller(&body[field.value], paths)? {
                    put(&mut new, 2, &controller);
                }
            }
            _ => new.extend_from_slice(&body[field.whole]),
        }
    }
    let mut out: Vec<u8> = image[..8].to_vec();
    let length = u32::try_from(new.len()).map_err(|_| Malformed("too long"))?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend(new);
    Ok(out)
}

/// `cg_set_entry`.
fn set(body: &[u8], paths: Option<(&str, &str)>) -> Result<Vec<u8>, Malformed> {
    let mut new = Vec::new();
    for field in Fields::of(body) {
        let field = field?;
        if field.number != 2 {
            new.extend_from_slice(&body[field.whole]);
        } else if let Some(member) = member(&body[field.value], paths)? {
            put(&mut new, 2, &member);
        }
    }
    Ok(new)
}

/// `cg_member_entry`; none if it is not of the unified hierarchy, whose name is empty.
fn member(body: &[u8], paths: Option<(&str, &str)>) -> Result<Option<Vec<u8>>, Malformed> {
    let (mut name, mut path, mut prefix) = (None, None, None);
    for field in Fields::of(body) {
        let field = field?;
        match field.number {
            1 => name = Some(text(&body[field.value])?),
            2 => path = Some(text(&body[field.value])?),
            3 => prefix = Some(varint(body, &mut field.value.start.clone())?),
            _ => return Err(Malformed("a member of a set has an unknown field")),
        }
    }
    let (Some(""), Some(path)) = (name, path) else {
        return Ok(None);
    };
    let mut moved = path.to_owned();
    if let Some((from, to)) = paths
        && let Some(there) = below(path, from, to)
    {
        moved = there;
        // The prefix is the length of the cgroup namespace's root in the path; a root above the container's cgroup is not ours to move.
        if let Some(p) = &mut prefix
            && *p >= from.len() as u64
        {
            *p = *p + to.len() as u64 - from.len() as u64;
        }
    }
    let mut new = Vec::new();
    put(&mut new, 1, b"");
    put(&mut new, 2, moved.as_bytes());
    if let Some(prefix) = prefix {
        new.push(3 << 3);
        put_varint(&mut new, prefix);
    }
    Ok(Some(new))
}

/// `path` with `to` in the place of `from`, if it is that or lies below it.
fn below(path: &str, from: &str, to: &str) -> Option<String> {
    let rest = path.strip_prefix(from)?;
    (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
}

/// `cg_controller_entry`; none if it is not the unified hierarchy's, which has one name, empty. A dump without `manage-cgroups` ignore has the tree of cgroups
/// in it, and CRIU makes each that is missing.
fn controller(body: &[u8], paths: Option<(&str, &str)>) -> Result<Option<Vec<u8>>, Malformed> {
    let mut new = Vec::new();
    for field in Fields::of(body) {
        let field = field?;
        match field.number {
            1 if !field.value.is_empty() => return Ok(None),
            2 => put(&mut new, 2, &directory(&body[field.value], paths)?),
            _ => new.extend_from_slice(&body[field.whole]),
        }
    }
    Ok(Some(new))
}

/// `cgroup_dir_entry` at the top: its name is a path without the slash in front; the names of those within it are relative.
fn directory(body: &[u8], paths: Option<(&str, &str)>) -> Result<Vec<u8>, Malformed> {
    let mut new = Vec::new();
    for field in Fields::of(body) {
        let field = field?;
        let moved = match paths {
            Some((from, to)) if field.number == 1 => below(
                text(&body[field.value.clone()])?,
                from.trim_start_matches('/'),
                to.trim_start_matches('/'),
            ),
            _ => None,
        };
        match moved {
            Some(name) => put(&mut new, 1, name.as_bytes()),
            None => new.extend_from_slice(&body[field.whole]),
        }
    }
    Ok(new)
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("a name is not UTF-8"))
}

fn put(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    out.push(number << 3 | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint(bytes: &[u8], at: &mut usize) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at).ok_or(Malformed("a number is cut off"))?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed("a number is too long"))
}

/// The fields of one protobuf message, as places in its bytes.
struct Fields<'a> {
    body: &'a [u8],
    at: usize,
}

struct Field {
    number: u64,
    /// With the tag.
    whole: Range<usize>,
    /// Of a length-delimited field the content, else the value as it is encoded.
    value: Range<usize>,
}

impl<'a> Fields<'a> {
    fn of(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }

    fn field(&mut self) -> Result<Field, Malformed> {
        let start = self.at;
        let tag = varint(self.body, &mut self.at)?;
        let mut value = self.at..self.at;
        match tag & 7 {
            0 => {
                varint(self.body, &mut self.at)?;
            }
            2 => {
                let length = usize::try_from(varint(self.body, &mut self.at)?)
                    .map_err(|_| Malformed("a field is too long"))?;
                value.start = self.at;
                self.at = self
                    .at
                    .checked_add(length)
                    .filter(|&end| end <= self.body.len())
                    .ok_or(Malformed("a field is cut off"))?;
            }
            _ => return Err(Malformed("a field of a type that it should not have")),
        }
        value.end = self.at;
        Ok(Field {
            number: tag >> 3,
            whole: start..self.at,
            value,
        })
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.body.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.body.len();
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// From CRIU 4.2.1 on a host with cgroup v1 beside v2, podman 5.4.2 and crun 1.21, dumped with `manage-cgroups` ignore.
    const HYBRID: &[u8] = include_bytes!("fixtures/cgroup-hybrid.img");
    const OLD: &str =
        "/libpod_parent/libpod-c85ee652e3f78378f85310bcf5a7eb299dadd64dbe72d12fedd59952cbdd13c9";

    fn printable(image: &[u8]) -> String {
        String::from_utf8_lossy(image).into_owned()
    }

    #[test]
    fn only_the_unified_hierarchy_stays_under_the_new_path() {
        let new = fit(HYBRID, Some((OLD, "/machine.slice/libpod-1.scope"))).unwrap();
        let text = printable(&new);
        assert!(text.contains("/machine.slice/libpod-1.scope"), "{text}");
        for gone in ["libpod_parent", "cpuset", "freezer", "systemd"] {
            assert!(!text.contains(gone), "{gone} in {text}");
        }
        assert_eq!(
            u32::from_le_bytes(new[8..12].try_into().unwrap()) as usize,
            new.len() - 12
        );
        // cgns_prefix follows the path's new length: field 3 right after it.
        let at = text.find(".scope").unwrap() + ".scope".len();
        assert_eq!(new[at..at + 2], [3 << 3, 29]);
    }

    /// runc 1.1 dumps the tree of cgroups too.
    #[test]
    fn tree_of_cgroups_moves_with_the_path() {
        let message = |number: u8, value: &[u8]| {
            let mut out = Vec::new();
            put(&mut out, number, value);
            out
        };
        let inner = message(2, &message(1, b"sub"));
        let dir = message(2, &[message(1, b"libpod_parent/libpod-1"), inner].concat());
        let body = message(2, &[message(1, b""), dir].concat());
        let image = [
            &HYBRID[..8],
            &u32::try_from(body.len()).unwrap().to_le_bytes(),
            &body,
        ]
        .concat();
        let new = printable(
            &fit(
                &image,
                Some(("/libpod_parent/libpod-1", "/machine.slice/x")),
            )
            .unwrap(),
        );
        assert!(
            new.contains("machine.slice/x") && new.contains("sub") && !new.contains("libpod"),
            "{new:?}"
        );
    }

    #[test]
    fn foreign_path_stays() {
        let new = fit(HYBRID, Some(("/libpod_parent/libpod-c85e", "/x"))).unwrap();
        assert!(printable(&new).contains(OLD));
        assert_eq!(
            fit(&new, None).unwrap(),
            new,
            "a second pass changes nothing"
        );
    }

    #[test]
    fn image_without_sets_stays() {
        assert_eq!(fit(&HYBRID[..8], None).unwrap(), HYBRID[..8]);
    }

    #[test]
    fn other_image_is_refused() {
        assert_eq!(
            fit(b"1943565400000000", None),
            Err(Malformed("no such magic number"))
        );
        assert_eq!(
            fit(&HYBRID[..60], None),
            Err(Malformed("shorter than it says"))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 8usize..HYBRID.len(), byte: u8) {
            let mut image = HYBRID.to_vec();
            image[at] = byte;
            if let Ok(new) = fit(&image, Some((OLD, "/x"))) {
                prop_assert!(new.len() >= 8);
            }
        }
    }
}
