//! This binary under another name, in a move's directory: `hook`, `shim/runc`, `shim/crun`, `shim/conmon`, `shim/netavark`.
use std::{env, ffi::OsString, io, path::Path, process::ExitCode};

use netmig_core::id::MoveId;

use crate::{
    agent::{hook, local::Greeting},
    engine::criu::{
        hook::{HookCall, HookReply},
        shim,
    },
};

/// Does what the name says.
pub fn called(mv: MoveId, path: &Path) -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    match path.file_name().and_then(|name| name.to_str()) {
        Some("hook") => run_hook(mv, path),
        Some("netavark") => shim::netavark(path, &args, |call| {
            ask(Greeting::Netavark(mv, call.clone()))
        }),
        _ => shim::main(path, &args, || {
            let reply: HookReply = ask(Greeting::Hook(mv, HookCall::images()))?;
            Ok(reply.code == 0)
        }),
    }
}

/// CRIU's action script: the moments that matter go to the agent.
fn run_hook(mv: MoveId, path: &Path) -> ExitCode {
    let Some(call) = HookCall::from_env() else {
        return ExitCode::SUCCESS;
    };
    let reply = shim::Config::of(&path.with_file_name("shim").join("hook")).and_then(|config| {
        if call.action.waits(config.side) {
            ask(Greeting::Hook(mv, call))
        } else {
            Ok(HookReply { code: 0 })
        }
    });
    match reply {
        Ok(HookReply { code }) => ExitCode::from(code),
        Err(e) => {
            eprintln!("netmig hook: {e:#}");
            ExitCode::FAILURE
        }
    }
}

pub(super) fn ask<R: serde::de::DeserializeOwned>(greeting: Greeting) -> io::Result<R> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(hook::ask(&greeting)))
}
