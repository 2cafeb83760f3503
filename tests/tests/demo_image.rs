//! The demo's image: the same everywhere, and made once.
use std::{fs, path::Path};

use netmig_lab::{
    Lab, Options,
    demo::{Error, Image},
    host::Host as _,
    root,
};
use tempfile::TempDir;

const PEER: &str = env!("CARGO_BIN_EXE_netmig-peer");

fn build(cache: &TempDir) -> Image {
    Image::build(&root::path(), Path::new(PEER), cache.path()).expect("an image")
}

#[test]
fn built_apart_it_is_the_same_to_the_byte_and_to_podman() {
    let caches = [(); 2].map(|()| TempDir::new().expect("a directory"));
    let images = caches.each_ref().map(build);
    assert_eq!(images[0].name(), images[1].name());
    let bytes = images
        .each_ref()
        .map(|image| fs::read(image.archive()).expect("an archive"));
    assert!(
        bytes[0] == bytes[1],
        "{} and {} bytes",
        bytes[0].len(),
        bytes[1].len()
    );

    let lab = Lab::temporary("image", &Options::default()).expect("a lab");
    let ids = [(lab.a(), &images[0]), (lab.b(), &images[1])].map(|(host, image)| {
        image.load(host).expect("loaded");
        image.load(host).expect("nothing to do");
        host.run(&[
            "podman",
            "image",
            "inspect",
            "--format",
            "{{.Id}}",
            image.name(),
        ])
        .expect("it is there")
    });
    assert_eq!(ids[0], ids[1]);
}

#[test]
fn the_cache_is_used_and_holds_nothing_half_made() {
    let cache = TempDir::new().expect("a directory");
    let image = build(&cache);
    fs::write(image.archive(), "kept").expect("writable");
    assert_eq!(
        fs::read(build(&cache).archive()).expect("readable"),
        b"kept"
    );
    assert_eq!(fs::read_dir(cache.path()).expect("readable").count(), 1);
}

#[test]
fn a_root_that_lacks_a_program_is_named() {
    let (empty, cache) = (
        TempDir::new().expect("a directory"),
        TempDir::new().expect("a directory"),
    );
    let error =
        Image::build(empty.path(), Path::new(PEER), cache.path()).expect_err("nothing there");
    assert!(
        matches!(&error, Error::Root { what, .. } if what == "redis-server"),
        "{error}"
    );
}
