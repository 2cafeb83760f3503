//! Archives in the "newc" format of cpio, the one that the kernel unpacks as an initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive under construction. Names are relative (`bin/busybox`), and a directory is added
/// before what it holds: the kernel unpacks in order and makes no missing parents.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

impl Archive {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory that everybody may enter.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, &[], (0, 0));
    }

    /// Adds a regular file with the permission bits of `mode`.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, REGULAR | (mode & 0o7777), content, (0, 0));
    }

    /// Adds a character device (major, minor).
    pub fn character_device(&mut self, name: &str, mode: u32, device: (u32, u32)) {
        self.entry(name, CHARACTER | (mode & 0o7777), &[], device);
    }

    /// The archive's bytes, with the entry that ends it.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.inodes += 1;
        let size = u32::try_from(content.len()).expect("a file of an initramfs is below 4 GiB");
        let fields = [
            self.inodes,
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // mtime
            size,
            0, // device of the file system
            0,
            device.0,
            device.1,
            name.len() as u32 + 1, // with the NUL that follows it
            0,                     // checksum, used by the "crc" variant only
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_newc() {
        let mut archive = Archive::new();
        archive.directory("dev");
        archive.character_device("dev/console", 0o600, (5, 1));
        archive.file("init", 0o755, b"#!\n");
        let bytes = archive.finish();

        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..14], b"07070100000001");
        // header 110, "dev" NUL ends at 114, padded to 116: the second entry begins there
        let second = &bytes[116..];
        assert_eq!(&second[..6], b"070701");
        assert_eq!(&second[14..22], b"00002180", "character device, 0600");
        assert_eq!(&second[78..94], b"0000000500000001", "5, 1");
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains("init\0\0#!\n\0"),
            "name and content are padded"
        );
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
