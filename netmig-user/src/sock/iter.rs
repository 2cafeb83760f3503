//! Programs that the kernel calls for every TCP socket of a namespace (`iter/tcp`).
use std::fs::File;

use aya::{Btf, Ebpf, EbpfLoader, maps::Map, programs::Iter};

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An object of such programs in the kernel.
pub(super) struct Object(Ebpf);

impl Object {
    /// Loads an object and these of its programs. Nothing in it depends on where a kernel has its fields.
    pub(super) fn load(bytes: &[u8], programs: &[&str]) -> Result<Self, Failure> {
        let mut object = Self(EbpfLoader::new().btf(None).load(bytes)?);
        let types = Btf::from_sys_fs()?;
        for name in programs {
            object.program(name)?.load("tcp", &types)?;
        }
        Ok(object)
    }

    /// A map of it, by its name and kind.
    pub(super) fn map<'a, M>(&'a mut self, name: &str) -> Result<M, Failure>
    where
        M: TryFrom<&'a mut Map>,
        M::Error: std::error::Error + Send + Sync + 'static,
    {
        let map = self
            .0
            .map_mut(name)
            .ok_or_else(|| format!("the embedded object lacks its map {name}"))?;
        Ok(map.try_into()?)
    }

    /// One pass over the sockets of the caller's namespace; what the program writes is read from the file.
    pub(super) fn pass(&mut self, program: &str) -> Result<File, Failure> {
        let program = self.program(program)?;
        let id = program.attach()?;
        Ok(program.take_link(id)?.into_file()?)
    }

    fn program(&mut self, name: &str) -> Result<&mut Iter, Failure> {
        Ok(self
            .0
            .program_mut(name)
            .ok_or_else(|| format!("the embedded object lacks its program {name}"))?
            .try_into()?)
    }
}
