//! Both machines joined by a pipe that delays and breaks, in simulated time, over two small worlds that perform the actions.
mod explore;
mod faults;
mod order;
mod pair;
mod parties;
mod source_world;
mod stories;
mod target_world;

use crate::{
    container::{Container, Manager, Recipe},
    proto::Question,
};

/// Splitmix64: a run is named by its seed.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

pub fn question() -> Box<Question> {
    let recipe = Recipe::Bundle {
        config: "{}".into(),
        bundle: "/srv/c".into(),
        rootfs: "/srv/c/rootfs".into(),
    };
    let container = Container {
        manager: Manager::Crun,
        id: "c".into(),
        name: "c".into(),
        init_pid: 1,
        netns: None,
        cgroup: None,
        mounts: Vec::new(),
        upper: None,
        resurrectors: Vec::new(),
        recipe,
    };
    Box::new(Question {
        container,
        network: Default::default(),
        attach: Vec::new(),
        facts: Default::default(),
        memory_bytes: 0,
        file_bytes: 0,
        image_bytes: 0,
        behind: None,
    })
}
