//! A TLS session that began on one worker goes on on another, and after a reload.

use phalanx_tests::lab;
use phalanx_tests::process::{Phalanx, free_port, wait_for};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A directory with a certificate of one's own; `None`, said so, where openssl is not there.
fn certificate() -> Option<(TempDir, PathBuf, PathBuf)> {
    let dir = tempfile::tempdir().expect("a directory");
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out"])
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .stderr(Stdio::null())
        .status();
    match made {
        Ok(made) => assert!(made.success(), "openssl makes a certificate"),
        Err(error) => {
            println!("SKIP: no openssl: {error}");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI has openssl");
            return None;
        }
    }
    Some((dir, certificate, key))
}

/// One request. Who answered, and whether the session was resumed.
fn get(port: u16, version: &str, session: &Path, first: bool) -> Option<(String, bool)> {
    let mut client = Command::new("openssl")
        .args(["s_client", "-ign_eof", "-servername", "localhost", version, "-connect"])
        .arg(format!("127.0.0.1:{port}"))
        .arg(if first { "-sess_out" } else { "-sess_in" })
        .arg(session)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl");
    let request = b"GET / HTTP/1.0\r\n\r\n";
    let _ = client.stdin.take().expect("stdin").write_all(request);
    let said = client.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let worker = said.lines().find_map(|line| line.trim().strip_prefix("x-worker: ").map(str::to_owned))?;
    Some((worker, said.lines().any(|line| line.starts_with("Reused,"))))
}

fn sessions_go_on(
    name: &str,
    serialization: &str,
    command: Vec<OsString>,
    env: &[(&str, OsString)],
    port: u16,
) {
    let mut phalanx = Phalanx::run(name).workers(2).options(["--serialization", serialization]);
    for (key, value) in env {
        phalanx = phalanx.env(key, value);
    }
    let mut phalanx = phalanx.start(command);
    phalanx.wait_listening(2);
    let dir = tempfile::tempdir().expect("a directory");
    for version in ["-tls1_2", "-tls1_3"] {
        let session = dir.path().join(version);
        // The keys may still be on their way to a worker that listens already.
        let (first, resumed) = wait_for("a session", || {
            let got = get(port, version, &session, true)?;
            session.metadata().is_ok_and(|file| file.len() > 0).then_some(got)
        });
        assert!(!resumed);
        let mut others = BTreeSet::new();
        wait_for("a session that goes on on the other worker", || {
            let (worker, resumed) = get(port, version, &session, false)?;
            others.extend((resumed && worker != first).then_some(worker));
            (!others.is_empty()).then_some(())
        });
        phalanx.tell("reload", [""; 0]);
        let (worker, resumed) =
            wait_for("an answer after the reload", || get(port, version, &session, false));
        assert!(resumed, "{version} on worker {worker}, which did not exist before");
        assert!(worker != first && !others.contains(&worker));
    }
    phalanx.finish();
}

#[test]
fn a_session_of_rustls_goes_on_on_any_worker_and_after_a_reload() {
    let Some((_dir, certificate, key)) = certificate() else { return };
    let port = free_port();
    let command = vec![
        lab::binary("tls_service").into(),
        port.to_string().into(),
        certificate.into_os_string(),
        key.into_os_string(),
    ];
    sessions_go_on("tls-rust", "json", command, &[], port);
}

#[test]
fn a_session_of_node_goes_on_on_any_worker_and_after_a_reload() {
    let Some((_dir, certificate, key)) = certificate() else { return };
    let Some(node) = lab::node("20") else { return };
    for serialization in ["json", "advanced"] {
        let port = free_port();
        let env = [
            ("PORT", port.to_string().into()),
            ("CERTIFICATE", certificate.clone().into_os_string()),
            ("KEY", key.clone().into_os_string()),
        ];
        let command = vec![node.clone().into_os_string(), lab::fixture("https.js").into_os_string()];
        sessions_go_on("tls-node", serialization, command, &env, port);
    }
}
