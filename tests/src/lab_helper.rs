//! The lab's helper program: see `netmig_lab::helper_main`.
fn main() -> std::process::ExitCode {
    netmig_lab::helper_main()
}
