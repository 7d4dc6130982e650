//! Images, made by hand: no registry is asked.
//!
//! The one of these tests is busybox and a few files to guard. Without a command it sleeps until it is told to end, so
//! that it serves as the pause image of sandboxes as well. Others have a program of ours besides.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// Not `latest`, and no registry's.
pub(crate) const NAME: &str = "localhost/janus-pods:1";

pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Files of the image. Every one holds its own path.
const FILES: [&str; 6] =
    ["/etc/secret", "/etc/public", "/etc/hosts", "/srv/data/key", "/srv/data/sub/key", "/srv/other"];

const PAUSE: &str = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";

/// Writes the image as a tar of the OCI layout, for `ctr images import`.
pub(crate) fn write(scratch: &Path, archive: &Path) -> io::Result<()> {
    let root = make_root(scratch)?;
    seal(scratch, &root, archive, NAME, &json!({"Cmd": ["/bin/sh", "-c", PAUSE], "Env": ["PATH=/bin"]}))
}

/// Writes an image that starts a program of ours, with the libraries that it is linked with.
#[allow(dead_code, reason = "for tests with a cluster")]
pub(crate) fn write_program(scratch: &Path, archive: &Path, name: &str, program: &Path) -> io::Result<()> {
    let root = make_root(scratch)?;
    let file = program.file_name().ok_or_else(|| io::Error::other("a program has a name"))?;
    fs::copy(program, root.join("bin").join(file))?;
    // A program without libraries is an error to ldd.
    let linked = Command::new("ldd").arg(program).output()?;
    let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
    for library in linked.split_whitespace().filter(|word| word.starts_with('/')) {
        let inside = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().unwrap_or(&root))?;
        fs::copy(library, inside)?;
    }
    let entrypoint = Path::new("/bin").join(file);
    seal(scratch, &root, archive, name, &json!({"Entrypoint": [entrypoint], "Env": ["PATH=/bin"]}))
}

/// The files of an image, before there is anything of its own.
fn make_root(scratch: &Path) -> io::Result<PathBuf> {
    let root = scratch.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for directory in ["bin", "proc", "sys", "dev", "tmp", "etc", "srv/data/sub", "volumes"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox"))?;
    for applet in output(Command::new(BUSYBOX).arg("--list"))?.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    for file in FILES {
        fs::write(root.join(file.trim_start_matches('/')), format!("{file}\n"))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    Ok(root)
}

/// Makes an archive of these files.
fn seal(scratch: &Path, root: &Path, archive: &Path, name: &str, how: &Value) -> io::Result<()> {
    let layout = scratch.join("layout");
    if layout.exists() {
        fs::remove_dir_all(&layout)?;
    }
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer = scratch.join("layer.tar");
    pack(root, &layer)?;
    let (layer, layer_bytes) = store(&blobs, &layer)?;
    let blob = |value: Value| -> io::Result<(String, u64)> {
        let file = scratch.join("blob.json");
        fs::write(&file, value.to_string())?;
        store(&blobs, &file)
    };
    let (config, config_bytes) = blob(json!({
        "architecture": architecture(), "os": "linux",
        "config": how,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
    }))?;
    let (manifest, manifest_bytes) = blob(json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{config}"), "size": config_bytes,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{layer}"), "size": layer_bytes,
        }],
    }))?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{manifest}"), "size": manifest_bytes,
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": name.rsplit(':').next(),
            },
        }],
    });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    pack(&layout, archive)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn pack(directory: &Path, archive: &Path) -> io::Result<()> {
    output(Command::new("tar").args(["--owner=0", "--group=0", "-C"]).arg(directory).arg("-cf").arg(archive).arg("."))
        .map(drop)
}

/// Moves a file among the blobs: its name there, and its size.
fn store(blobs: &Path, file: &Path) -> io::Result<(String, u64)> {
    let told = output(Command::new("sha256sum").arg(file))?;
    let digest = told.split_whitespace().next().ok_or_else(|| io::Error::other("sha256sum says nothing"))?.to_owned();
    let size = fs::metadata(file)?.len();
    fs::rename(file, blobs.join(&digest))?;
    Ok((digest, size))
}

fn output(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))))
}
