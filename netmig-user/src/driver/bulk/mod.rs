//! Image files from source to target on a connection of their own, so that control never waits behind memory pages.
//!
//! While the container runs, its memory goes over as loose pages ([`Sender::offer`]), in rounds. While the engine writes, files of memory pages
//! are sent as they grow, and a page whose content the target has already goes as its number alone; what is small, and may still be rewritten,
//! is sent once everything is on disk. Pages are known by content, so it does not matter which engine writes them, where in memory they lie, or
//! whether the kernel can tell which were written to. The receiver writes below one directory and nowhere else (names are checked when a frame
//! is decoded).
mod known;
mod receive;
mod send;

pub use receive::{Arrived, Receiver};
pub use send::Sender;

/// How many bytes of pages may go ahead of the images of a container with so many bytes of memory: pages that change are sent more than once.
#[must_use]
pub fn ahead(memory_bytes: u64) -> u64 {
    memory_bytes / 2 * 3 + (16 << 20)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use anyhow::Result;
    use bytes::Bytes;
    use netmig_core::frame::{
        Chunk, FileBegin, FileEnd, Frame, PAGE, PageRefs, PageRun, RelativePath,
    };
    use tokio::sync::mpsc;

    use super::*;

    fn drain(
        rx: &mut mpsc::Receiver<Frame>,
        receiver: &mut Receiver,
        arrived: &Arrived,
    ) -> Result<()> {
        while let Ok(frame) = rx.try_recv() {
            receiver.take(frame, arrived)?;
        }
        Ok(())
    }

    #[test]
    fn files_arrive_as_they_grew() -> Result<()> {
        let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let (tx, mut rx) = mpsc::channel(64);
        let mut sender = Sender::new(from.path(), tx, 0);
        let (mut receiver, arrived) = (
            Receiver::new(&to.path().join("images"), 0)?,
            Arrived::default(),
        );
        let pages: Vec<u8> = (0..700_000u32).map(|i| i as u8).collect();
        fs::write(from.path().join("pages-1.img"), &pages[..300_000])?;
        fs::write(from.path().join("core-1.img"), b"not yet")?;
        assert!(sender.grown()?);
        fs::write(from.path().join("pages-1.img"), &pages)?;
        fs::write(from.path().join("core-1.img"), b"now")?;
        let (files, bytes) = sender.rest()?;
        assert_eq!((files, bytes), (2, 700_003));
        drain(&mut rx, &mut receiver, &arrived)?;
        arrived.wait(files, bytes, Duration::ZERO)?;
        assert_eq!(fs::read(to.path().join("images/pages-1.img"))?, pages);
        assert_eq!(fs::read(to.path().join("images/core-1.img"))?, b"now");
        Ok(())
    }

    #[test]
    fn a_changed_byte_is_noticed() -> Result<()> {
        let to = tempfile::tempdir()?;
        let (mut receiver, arrived) = (Receiver::new(to.path(), 0)?, Arrived::default());
        let path = RelativePath::try_from("core-1.img".to_owned())?;
        receiver.take(
            Frame::FileBegin(FileBegin {
                file: 0,
                path,
                mode: 0o600,
                offset: 0,
            }),
            &arrived,
        )?;
        receiver.take(
            Frame::Chunk(Chunk {
                file: 0,
                offset: 0,
                data: Bytes::from_static(b"abc"),
            }),
            &arrived,
        )?;
        let end = FileEnd {
            file: 0,
            length: 3,
            crc: crc32fast::hash(b"abd"),
        };
        assert!(receiver.take(Frame::FileEnd(end), &arrived).is_err());
        assert!(arrived.wait(1, 3, Duration::ZERO).is_err());
        Ok(())
    }

    /// A page with this number everywhere.
    fn page(content: u16) -> Vec<u8> {
        content.to_le_bytes().repeat(PAGE / 2)
    }

    #[test]
    fn a_page_that_was_sent_ahead_is_not_sent_again() -> Result<()> {
        let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let (tx, mut rx) = mpsc::channel(1024);
        let mut sender = Sender::new(from.path(), tx, 300 * PAGE as u64);
        let (mut receiver, arrived) = (
            Receiver::new(to.path(), 300 * PAGE as u64)?,
            Arrived::default(),
        );
        let memory: Vec<u8> = (0..200).flat_map(page).collect();
        sender.offer(&memory)?;
        sender.offer(&memory)?;
        assert_eq!((sender.flush()?, sender.sent()), (200, 200 * PAGE as u64));
        // In the image: another order, pages twice, pages that have changed, at last a part of one.
        let numbers = (50..120)
            .chain(0..60)
            .chain(1000..1003)
            .chain([199, 1000, 7]);
        let mut image: Vec<u8> = numbers.flat_map(page).collect();
        image.extend(&page(3)[..100]);
        fs::write(from.path().join("pages-1.img"), &image[..90 * PAGE + 17])?;
        assert!(sender.grown()?);
        fs::write(from.path().join("pages-1.img"), &image)?;
        let (files, bytes) = sender.rest()?;
        assert_eq!(bytes, image.len() as u64);
        assert_eq!(
            sender.sent(),
            204 * PAGE as u64 + 100,
            "four new pages and a part of one"
        );
        drain(&mut rx, &mut receiver, &arrived)?;
        arrived.wait(files, bytes, Duration::ZERO)?;
        assert_eq!(fs::read(to.path().join("pages-1.img"))?, image);
        Ok(())
    }

    #[test]
    fn both_ends_keep_to_the_limit_of_pages_ahead() -> Result<()> {
        let (from, to) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let (tx, mut rx) = mpsc::channel(1024);
        let mut sender = Sender::new(from.path(), tx, 3 * PAGE as u64);
        let memory: Vec<u8> = (0..5).flat_map(page).collect();
        sender.offer(&memory)?;
        assert_eq!(sender.flush()?, 3);
        let (mut receiver, arrived) = (
            Receiver::new(to.path(), 2 * PAGE as u64)?,
            Arrived::default(),
        );
        let Err(error) = drain(&mut rx, &mut receiver, &arrived) else {
            panic!("three pages where two may come");
        };
        assert!(
            error.to_string().contains("more than 8192 bytes"),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn a_page_that_never_came_is_refused() -> Result<()> {
        let to = tempfile::tempdir()?;
        let (mut receiver, arrived) = (Receiver::new(to.path(), 1 << 20)?, Arrived::default());
        receiver.take(Frame::Pages(Bytes::from(page(1))), &arrived)?;
        let path = RelativePath::try_from("pages-1.img".to_owned())?;
        let begin = FileBegin {
            file: 0,
            path,
            mode: 0o600,
            offset: 0,
        };
        receiver.take(Frame::FileBegin(begin), &arrived)?;
        for (first, count) in [(1, 1), (0, 2), (u32::MAX, 2)] {
            let refs = PageRefs {
                file: 0,
                offset: 0,
                runs: vec![PageRun { first, count }],
            };
            assert!(
                receiver.take(Frame::PageRefs(refs), &arrived).is_err(),
                "{first} + {count}"
            );
        }
        Ok(())
    }
}
