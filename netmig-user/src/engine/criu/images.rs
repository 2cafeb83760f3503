//! What the target changes in CRIU's images before CRIU reads them.
use std::{fs, io, path::Path};

use super::{Error, cgroup_img, file, put};
use crate::runtime::CreatedContainer;

/// Tracked connections and expectations. CRIU writes and restores them of a namespace that is none of its own business, too (dump_net_ns(),
/// prepare_net_ns_second_stage()), as ctnetlink shows them: translated addresses come back as a reply direction and without the bits that make
/// the kernel translate (IPS_SRC_NAT, IPS_DST_NAT). They are netmig's.
const TRACKED: [&str; 2] = ["netns-ct-", "netns-exp-"];

/// Makes them fit the container that was made here, and leaves netmig's part of the network to netmig.
pub(super) fn fit(images: &Path, created: &CreatedContainer) -> Result<(), Error> {
    fit_cgroup(images, created)?;
    remove_tracked(images)
}

fn fit_cgroup(images: &Path, created: &CreatedContainer) -> Result<(), Error> {
    let path = images.join("cgroup.img");
    let image = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|e| file("reading", &path, e))?,
    };
    let paths = created
        .cgroup_from
        .as_deref()
        .zip(created.cgroup_to.as_deref());
    let fitted = cgroup_img::fit(&image, paths).map_err(|source| Error::Image {
        path: path.clone(),
        source,
    })?;
    put(&path, &fitted)
}

/// An image that is not there has nothing in it for CRIU (open_image_at(): EMPTY_IMG_FD).
fn remove_tracked(images: &Path) -> Result<(), Error> {
    let listed = fs::read_dir(images).map_err(|e| file("listing", images, e))?;
    for entry in listed {
        let entry = entry.map_err(|e| file("listing", images, e))?;
        let name = entry.file_name();
        if TRACKED
            .iter()
            .any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        {
            let path = entry.path();
            fs::remove_file(&path).map_err(|e| file("removing", &path, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracked_connections_are_not_left_to_criu() {
        let images = tempfile::tempdir().unwrap();
        for name in [
            "inventory.img",
            "netns-9.img",
            "netns-ct-9.img",
            "netns-exp-9.img",
        ] {
            fs::write(images.path().join(name), name).unwrap();
        }
        remove_tracked(images.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(images.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["inventory.img", "netns-9.img"]);
    }
}
