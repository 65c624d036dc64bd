//! Builds the kernel programs: `ebpf/` → `target/ebpf/kelp-ebpf`.
//!
//! Two compilers can do it. A rustup nightly with `rust-src` builds `core` itself (`-Z build-std=core`); Debian's
//! `rustc-web` comes with a prebuilt `core` for BPF in `libstd-rust-web-dev-bpf`. Whichever is there is used, and
//! when neither is, Debian's packages are installed. `bpf-linker` must be built against the LLVM of that compiler,
//! so it is installed into `target/tools` and not taken from `PATH`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The release of bpf-linker that is installed; it knows LLVM 21 to 23.
const BPF_LINKER_VERSION: &str = "0.13.0";
/// Oldest and newest LLVM major version that release can be built for.
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;
/// The target of the kernel programs. Every host Kelp supports is little-endian.
const TARGET: &str = "bpfel-unknown-none";
/// Debian's packages: a compiler and the `core` that was built by exactly that compiler.
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// A compiler that can build for BPF.
struct Compiler {
    /// How it is called in messages and in the name of the tools directory.
    name: &'static str,
    /// The `rustc` to run.
    rustc: PathBuf,
    /// Arguments that go before `build` on cargo's command line (`+nightly`).
    toolchain: Option<&'static str>,
    /// Whether `core` has to be built from `rust-src`.
    build_std: bool,
}

/// Builds the kernel programs of the workspace at `root` and returns the path of the object,
/// `<root>/target/ebpf/kelp-ebpf`. Does next to nothing when no source changed; the object's time stamp changes
/// only with its content. Installs what is missing and says so on standard error.
///
/// # Errors
/// When no compiler can be found or installed, or the build fails; the compiler's own messages are on standard
/// error then.
pub fn run(root: &Path) -> Result<PathBuf> {
    ensure!(cfg!(target_endian = "little"), "the kernel programs are built for little-endian hosts only");
    let root = root.canonicalize().with_context(|| format!("find the workspace {}", root.display()))?;
    let compiler = find_or_install_compiler()?;
    let linker = bpf_linker(&root, &compiler)?;
    let out = root.join("target/ebpf");
    let build_dir = out.join(format!("build-{}", compiler.name));

    let mut cargo = cargo(&compiler);
    cargo
        .current_dir(&root)
        .args(["build", "--quiet", "--locked", "--package", "kelp-ebpf", "--release", "--target", TARGET])
        .arg("--target-dir")
        .arg(&build_dir)
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        .env(
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
            // LLVM 22 crashes on in-order copies of 16-aligned values, so that lowering is off.
            "-Cdebuginfo=2 -Ctarget-cpu=v3 -Clink-arg=--btf -Clink-arg=--disable-expand-memcpy-in-order \
             -Clink-arg=--log-level=error",
        );
    // The workspace's release profile is for hosts; the verifier wants one unit, no unwinding and line information.
    for (key, value) in [
        ("OPT_LEVEL", "3"),
        ("DEBUG", "2"),
        ("STRIP", "none"),
        ("PANIC", "abort"),
        ("LTO", "true"),
        ("CODEGEN_UNITS", "1"),
        ("OVERFLOW_CHECKS", "false"),
        ("DEBUG_ASSERTIONS", "false"),
    ] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    if compiler.build_std {
        cargo.args(["-Z", "build-std=core"]);
    }
    run_visible(&mut cargo).context("build the kernel programs in ebpf/")?;

    let built = build_dir.join(TARGET).join("release/kelp-ebpf");
    let object = out.join("kelp-ebpf");
    install_if_changed(&built, &object)?;
    Ok(object)
}

/// Cargo with an environment that does not leak the outer build into this one (an xtask runs under `cargo run`).
fn cargo(compiler: &Compiler) -> Command {
    let mut command = match compiler.toolchain {
        // The rustup proxy, not the cargo of the toolchain this program was built with.
        Some(toolchain) => {
            let mut command = Command::new("cargo");
            command.arg(toolchain);
            command
        }
        None => Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
    };
    for key in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTFLAGS",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_RUSTC",
        "CARGO_BUILD_RUSTC_WRAPPER",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
    ] {
        command.env_remove(key);
    }
    if compiler.toolchain.is_some() {
        command.env_remove("RUSTUP_TOOLCHAIN");
    }
    command
}

/// Finds a compiler for BPF, installing Debian's when there is none.
fn find_or_install_compiler() -> Result<Compiler> {
    if let Some(compiler) = debian_compiler() {
        return Ok(compiler);
    }
    if let Some(compiler) = rustup_nightly() {
        return Ok(compiler);
    }
    install_debian_packages()?;
    debian_compiler().context(
        "the packages rustc-web and libstd-rust-web-dev-bpf are installed, but /usr/bin/rustc has no core for BPF; \
         run `rustup toolchain install nightly --component rust-src` instead",
    )
}

/// Debian's `rustc-web`, when it has a prebuilt `core` for BPF.
fn debian_compiler() -> Option<Compiler> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let libraries = sysroot(Command::new(&rustc))?.join("lib/rustlib").join(TARGET).join("lib");
    let has_core = fs::read_dir(libraries)
        .ok()?
        .filter_map(Result::ok)
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
    has_core.then_some(Compiler { name: "debian", rustc, toolchain: None, build_std: false })
}

/// A rustup nightly that carries the source of `core`.
fn rustup_nightly() -> Option<Compiler> {
    let mut query = Command::new("rustc");
    query.arg("+nightly").env_remove("RUSTUP_TOOLCHAIN");
    let sysroot = sysroot(query)?;
    let source = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    source.exists().then(|| Compiler {
        name: "nightly",
        rustc: sysroot.join("bin/rustc"),
        toolchain: Some("+nightly"),
        build_std: true,
    })
}

/// `rustc --print sysroot`, or nothing when that compiler does not run.
fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    let output = rustc.args(["--print", "sysroot"]).stderr(Stdio::null()).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

/// Installs [`DEBIAN_PACKAGES`] with apt.
fn install_debian_packages() -> Result<()> {
    const ADVICE: &str = "no compiler for BPF was found: run `rustup toolchain install nightly --component \
                          rust-src`, or on Debian `apt-get install rustc-web libstd-rust-web-dev-bpf`";
    ensure!(Path::new("/usr/bin/apt-get").exists(), ADVICE);
    eprintln!("installing the Debian packages {} (528 MB on disk)", DEBIAN_PACKAGES.join(" and "));
    let root = nix::unistd::geteuid().is_root();
    let apt = || {
        let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
        if !root {
            command.arg("apt-get");
        }
        command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        command
    };
    // The lists may be stale or absent; an install without them fails, so a failed update is not the last word.
    let _ = run_visible(apt().args(["update", "-qq"]));
    run_visible(apt().args(["install", "-y", "-qq", "--no-install-recommends"]).args(DEBIAN_PACKAGES))
        .context(ADVICE)
}

/// The bpf-linker for this compiler's LLVM, installed into `target/tools` when it is not there.
fn bpf_linker(root: &Path, compiler: &Compiler) -> Result<PathBuf> {
    let major = llvm_major(&compiler.rustc)?;
    ensure!(
        BPF_LINKER_LLVM.contains(&major),
        "bpf-linker {BPF_LINKER_VERSION} knows LLVM {} to {}, but {} has LLVM {major}; use another toolchain",
        BPF_LINKER_LLVM.start(),
        BPF_LINKER_LLVM.end(),
        compiler.rustc.display()
    );
    let tools =
        root.join("target/tools").join(format!("bpf-linker-{BPF_LINKER_VERSION}-{}-{major}", compiler.name));
    let linker = tools.join("bin/bpf-linker");
    // It is run and not only looked for: after an upgrade of the compiler its LLVM may be gone.
    if answers(&linker) {
        return Ok(linker);
    }
    eprintln!(
        "installing bpf-linker {BPF_LINKER_VERSION} for LLVM {major} into {} (about 80 s)",
        tools.display()
    );
    let library = llvm_library(compiler, major)?;
    let llvm = tools.join("llvm");
    fs::create_dir_all(llvm.join("lib")).context("create target/tools")?;
    let file_name = library.file_name().context("find libLLVM")?;
    // The first is what the linker of the build looks for, the second what the loader does: the rpath stays.
    for name in [OsStr::new("libLLVM.so"), file_name] {
        let link = llvm.join("lib").join(name);
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link).context("replace a link to libLLVM")?;
        }
        symlink(&library, &link).context("link to libLLVM")?;
    }
    let host = Compiler { name: "host", rustc: PathBuf::new(), toolchain: None, build_std: false };
    let mut install = cargo(&host);
    install
        .current_dir(root)
        .args(["install", "--quiet", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{major}")])
        .args(["--config", "profile.release.debug=false"])
        .arg("--root")
        .arg(&tools)
        .env("LLVM_PREFIX", &llvm)
        .env("CARGO_TARGET_DIR", root.join("target/tools/build"));
    run_visible(&mut install).context("install bpf-linker")?;
    ensure!(answers(&linker), "{} was installed but does not run", linker.display());
    let _ = fs::remove_dir_all(root.join("target/tools/build"));
    Ok(linker)
}

/// Whether a program exists and runs.
fn answers(program: &Path) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The major version of the LLVM a compiler was built with.
fn llvm_major(rustc: &Path) -> Result<u32> {
    let output =
        Command::new(rustc).arg("-vV").output().with_context(|| format!("run {}", rustc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
        .with_context(|| format!("{} -vV did not tell its LLVM version", rustc.display()))
}

/// The shared LLVM library a compiler loads: bpf-linker must read the bitcode that LLVM wrote.
fn llvm_library(compiler: &Compiler, major: u32) -> Result<PathBuf> {
    let mut directories = vec![];
    if compiler.build_std {
        let sysroot = sysroot(Command::new(&compiler.rustc)).context("find the toolchain's libraries")?;
        directories.push(sysroot.join("lib"));
    } else {
        let output = Command::new("/sbin/ldconfig").arg("-p").output().context("run ldconfig -p")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let library = text.lines().find_map(|line| {
            let (name, path) = line.split_once(" => ")?;
            name.trim().starts_with(&format!("libLLVM.so.{major}.")).then(|| PathBuf::from(path.trim()))
        });
        if let Some(library) = library {
            return Ok(library);
        }
        directories.extend(["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"].map(PathBuf::from));
    }
    for directory in &directories {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries.filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(&format!("libLLVM.so.{major}")) {
                return Ok(entry.path());
            }
        }
    }
    bail!("no libLLVM.so.{major}* was found; install the package libllvm{major}")
}

/// Copies the object when its content differs, so that a build that embeds it is not repeated for nothing.
fn install_if_changed(built: &Path, object: &Path) -> Result<()> {
    let new = fs::read(built).with_context(|| format!("read {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let temporary = object.with_extension("new");
    fs::write(&temporary, &new).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, object).with_context(|| format!("write {}", object.display()))
}

/// Runs a command with its messages on standard error.
fn run_visible(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {:?}", command.get_program()))?;
    ensure!(status.success(), "{:?} failed: {status}", command.get_program());
    Ok(())
}
