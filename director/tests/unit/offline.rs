//! The commands on a store that no director has open, as processes.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use director::audit::{self, Entry};
use serde_json::json;
use store::{Backup, Options, Sqlite};

use super::Server;

/// A configuration, its store, and the program.
pub(super) struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "[director]\nlisten = \"127.0.0.1:0\"\nstore = {:?}\naudit_key = {:?}\n\
             control_socket = {:?}\n",
            at("store"),
            at("key"),
            at("socket")
        );
        fs::write(folder.path().join("d.toml"), text).expect("a file");
        Self { folder }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spawn(&self, words: &str, input: &str) -> Output {
        let mut output = self.spawn_once(words, input);
        for _ in 0..50 {
            // A process that another test begins has the lock until it runs its program.
            if !String::from_utf8_lossy(&output.stderr).contains("is open in another process") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            output = self.spawn_once(words, input);
        }
        output
    }

    fn spawn_once(&self, words: &str, input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_causeway-director"));
        let words: Vec<_> = words.split(' ').collect();
        command.args(&words);
        match words[0] {
            "verify-audit" => {}
            "check" => drop(command.arg(self.path("d.toml"))),
            _ => drop(command.arg("--config").arg(self.path("d.toml"))),
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program");
        let mut stdin = child.stdin.take().expect("its input");
        // It may read nothing.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("its end")
    }

    #[track_caller]
    pub(super) fn run(&self, words: &str) -> String {
        self.typed(words, "")
    }

    #[track_caller]
    fn typed(&self, words: &str, input: &str) -> String {
        let output = self.spawn(words, input);
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout)
            .expect("text")
            .trim()
            .to_owned()
    }

    #[track_caller]
    pub(super) fn fails(&self, words: &str, text: &str) {
        let output = self.spawn(words, "");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && error.contains(text),
            "{words}: {output:?}"
        );
    }

    pub(super) fn backup(&self, name: &str) -> String {
        let store = open(&self.path("store"));
        store.backup(&self.path(name)).expect("a backup");
        self.path(name).display().to_string()
    }

    /// Operations and users of the audit.
    fn audit(&self) -> Vec<(String, String)> {
        let name = format!(
            "backup-{}",
            fs::read_dir(self.folder.path()).expect("it").count()
        );
        let backup = Backup::open(Path::new(&self.backup(&name))).expect("a backup");
        let entries = backup.snapshot(audit::PREFIX).expect("entries").entries;
        let entries = entries.iter().map(|entry| {
            let entry: Entry = serde_json::from_str(&entry.value).expect("an entry");
            (entry.operation, entry.user)
        });
        entries.collect()
    }
}

/// Writes a file for its owner alone.
fn private(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its mode");
}

/// Opens a store. A process that another test begins has its lock until it runs its program.
pub(super) fn open(path: &Path) -> Sqlite {
    for _ in 0..250 {
        if let Ok(store) = Sqlite::open(path, Options::default()) {
            return store;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("the store is still in use");
}

#[test]
fn a_key_is_replaced_and_the_audit_stays_verifiable() {
    let site = Site::new();
    site.run("init");
    let first = site.path("key");
    assert!(first.exists(), "init makes the key");
    site.fails("init", "causeway-director recover");
    let old = fs::read_to_string(&first).expect("a key");
    let second = site.run("replace-audit-key");
    assert_ne!(fs::read_to_string(&first).expect("a key"), old);
    let third = site.run("replace-audit-key");
    let backup = site.backup("rotated");
    let verify = |keys: &str| format!("verify-audit {backup}{keys}");
    for key in [&second, &third] {
        let good = site.run(&verify(&format!(" --key {key}")));
        assert!(
            good.ends_with("3 entries, the first 3 of them signed"),
            "{good}"
        );
    }
    let stranger = "00".repeat(32);
    site.fails(
        &verify(&format!(" --key {stranger}")),
        "signed by another key",
    );

    // Neither a missing key nor another one is put in its place silently.
    fs::remove_file(&first).expect("it is there");
    site.fails("serve", "put it back from where it was kept");
    assert!(!first.exists());
    site.fails("replace-audit-key", "put it back from where it was kept");
    private(&first, &old);
    site.fails("serve", "put that key back");
    site.fails("replace-audit-key", "put that key back");
    let fourth = site.run("replace-audit-key --lost");
    let backup = site.backup("lost");
    let verify = |keys: &str| format!("verify-audit {backup}{keys}");
    site.fails(&verify(&format!(" --key {third}")), "signed by another key");
    site.run(&verify(&format!(" --key {fourth}")));
    site.run(&verify(&format!(" --key {third} --key {fourth}")));
    let operations: Vec<_> = site
        .audit()
        .into_iter()
        .map(|(operation, _)| operation)
        .collect();
    let replace = "audit-key.replace";
    assert_eq!(
        operations,
        ["init", replace, replace, "audit-key.replace-lost"]
    );
}

#[test]
fn a_replacement_that_was_cut_short_is_finished() {
    let site = Site::new();
    site.run("init");
    let old = fs::read(site.path("key")).expect("a key");
    let public = site.run("replace-audit-key");
    // As if it had ended between the commit and the new name.
    fs::rename(site.path("key"), site.path("key.new")).expect("renamed");
    private(&site.path("key"), &old);
    site.fails("serve", "put that key back");
    assert_eq!(site.run("replace-audit-key"), public);
    assert_eq!(site.audit().len(), 2);
    // One of a run that ended before the commit is of no use.
    fs::write(site.path("key.new"), "00".repeat(32)).expect("a file");
    assert_ne!(site.run("replace-audit-key"), public);
    assert!(!site.path("key.new").exists());
}

#[test]
fn a_restored_store_says_so_and_a_kept_checkpoint_shows_the_cut() {
    let site = Site::new();
    site.run("init");
    site.run("replace-audit-key");
    let backup = site.backup("backup");
    site.run("recover --user thief");
    site.run("replace-audit-key");
    // The last checkpoint, kept elsewhere.
    let later = site.backup("later");
    let kept = Backup::open(Path::new(&later)).expect("a backup");
    let kept = kept.snapshot(audit::CHECKPOINTS).expect("checkpoints");
    let kept = &kept.entries.last().expect("a checkpoint").value;
    fs::write(site.path("kept.json"), kept).expect("a file");
    let since = format!(" --since {}", site.path("kept.json").display());
    site.run(&format!("verify-audit {later}{since}"));
    site.run(&format!("verify-audit {backup}"));
    let cut = format!("verify-audit {backup}{since}");
    site.fails(&cut, "the end of the chain is missing");

    fs::remove_file(site.path("store")).expect("it is there");
    site.run(&format!("restore {backup}"));
    let audit = site.audit();
    let (operation, user) = audit.last().expect("an entry");
    assert_eq!(operation, "restore");
    assert!(user.starts_with("uid:"), "{user}");
    // The key is a later one than the audit knows.
    site.fails("serve", "put that key back");
}

#[tokio::test]
async fn an_administrator_is_let_in_again() {
    let site = Site::new();
    site.fails("recover", "run `causeway-director init` first");
    assert!(!site.path("store").exists());
    let short = site.spawn("init --password-stdin", "short\n");
    assert!(!short.status.success(), "{short:?}");
    site.typed("init --password-stdin", "correct horse battery\n");
    let mut server = Server::of(&site.path("store")).await;
    let log_in = |password: &str| json!({ "user": "admin", "password": password });
    let first = log_in("correct horse battery");
    server
        .post("", "/v1/sessions", first.clone())
        .await
        .expect(201);
    let token = server
        .post("", "/v1/sessions", first.clone())
        .await
        .expect(201)
        .json();
    let token = token["secret"].as_str().expect("a secret").to_owned();
    server
        .call(&token, "POST", "/v1/self/totp", &[], None)
        .await
        .expect(201);
    let operator = json!({ "name": "op", "role": "provider-operator",
        "password": "correct horse battery" });
    server.post(&token, "/v1/users", operator).await.expect(201);
    server.stop().await;

    site.fails("recover --user op", "is no provider-admin");
    let again = site.typed("recover --password-stdin", "another horse battery\n");
    let new = site.run("recover --user second");
    let server = Server::of(&site.path("store")).await;
    for secret in [&again, &new] {
        let own = server.get(secret, "/v1/self").await.expect(200).json();
        assert_eq!(own["role"], "provider-admin");
    }
    server.post("", "/v1/sessions", first).await.expect(401);
    let second = log_in("another horse battery");
    server.post("", "/v1/sessions", second).await.expect(201);
    let entries = server.get(&again, "/v1/audit").await.expect(200).json();
    let entries = entries["items"].as_array().expect("a list");
    let found = entries
        .iter()
        .filter(|entry| entry["operation"] == "recover");
    assert_eq!(found.count(), 2);
}

#[tokio::test]
async fn the_last_administrator_with_access_cannot_be_removed() {
    let server = Server::start().await;
    let real = server.user("real", "provider-admin", None).await;
    // The first one has no password, and now no token.
    let own = server
        .get(&server.admin, "/v1/self")
        .await
        .expect(200)
        .json();
    let id = own["token"].as_str().expect("an id");
    let path = format!("/v1/tokens/{id}");
    server
        .call(&server.admin, "DELETE", &path, &[], None)
        .await
        .expect(204);
    let refused = server
        .call(&real, "DELETE", "/v1/users/real", &[], None)
        .await;
    let refused = refused.expect(409).json();
    let detail = refused["detail"].as_str().expect("a detail");
    assert!(
        detail.contains("has a password or a valid token"),
        "{detail}"
    );
    server
        .call(&real, "DELETE", "/v1/users/admin", &[], None)
        .await
        .expect(204);
}

#[test]
fn a_key_that_cannot_be_used_is_found_before_a_store_is_made() {
    let site = Site::new();
    fs::write(site.path("key"), "00".repeat(32)).expect("a file");
    site.fails("init", "): run `chmod o= ");
    private(&site.path("key"), "no key");
    site.fails("init", "has no key of 32 bytes");
    assert!(!site.path("store").exists());
    fs::remove_file(site.path("key")).expect("it is there");
    site.run("init");
    assert!(site.path("key").exists());
    let open = fs::Permissions::from_mode(0o644);
    fs::set_permissions(site.path("key"), open).expect("its mode");
    site.fails("serve", "other users can access it");
}
