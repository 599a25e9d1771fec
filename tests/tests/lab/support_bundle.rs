//! Support bundles of running daemons have what support needs, and no secret of the site.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::Path,
};

use causeway_tests::site::{ENCRYPTED, Site};
use flate2::read::GzDecoder;

/// Names and contents of an archive's files, without their folder.
fn unpacked(path: &Path) -> BTreeMap<String, String> {
    let file = File::open(path).expect("the bundle");
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let files = archive.entries().expect("an archive").map(|entry| {
        let mut entry = entry.expect("a file");
        let path = entry.path().expect("its name").into_owned();
        let name = path.iter().skip(1).collect::<std::path::PathBuf>();
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("its text");
        (name.display().to_string(), text)
    });
    files.collect()
}

/// Lines of the files with keys, and of texts in quotes in the configurations of gateways, that
/// have the form of a key.
fn secrets(site: &Site) -> Vec<String> {
    let mut secrets = Vec::new();
    for entry in fs::read_dir(site.run_dir().join("etc")).expect("the configuration") {
        let path = entry.expect("a file").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let is_key = |text: &&str| text.len() == 44 && text.ends_with('=');
        if name.ends_with(".key") {
            let lines = text.lines().filter(|line| line.len() > 20);
            secrets.extend(lines.map(str::to_owned));
        } else if name.starts_with("gw") {
            secrets.extend(text.split('"').filter(is_key).map(str::to_owned));
        }
    }
    secrets
}

#[track_caller]
fn has_no_secret(files: &BTreeMap<String, String>, secrets: &[String]) {
    for (name, text) in files {
        for secret in secrets {
            assert!(!text.contains(secret), "{name} has a secret");
        }
    }
}

#[test]
fn a_bundle_has_status_configuration_and_machine_and_no_secret() {
    let Some(site) = Site::bare(lab::sites::partial_by_gateways, ENCRYPTED) else {
        return;
    };
    site.start_cloud().unwrap_or_else(|e| panic!("{e}"));
    site.start_appliances().unwrap_or_else(|e| panic!("{e}"));
    let secrets = secrets(&site);
    assert!(secrets.len() > 6, "{} secrets", secrets.len());

    let appliance = site.appliance("tenant-appliance").expect("an appliance");
    let gateway = site.gateway("gw1").expect("a gateway");
    let path = |name: &str| site.run_dir().join(name);
    let words = |output: &Path, config: &Path| {
        let text = |path: &Path| path.display().to_string();
        let (output, config) = (text(output), text(config));
        ["support-bundle", "--output", &output, "--config", &config].map(str::to_owned)
    };

    let file = path("appliance.tar.gz");
    let printed = appliance.must(&words(&file, &appliance.config_path()));
    println!("{}", printed.unwrap_or_else(|e| panic!("{e}")));
    let files = unpacked(&file);
    has_no_secret(&files, &secrets);
    assert!(files["status.json"].contains("\"ready\": true"));
    assert!(
        files["counters.json"].contains("drop_no_worker"),
        "{files:?}"
    );
    assert!(files["configuration.json"].contains("private_key_file"));
    assert!(files["machine/interfaces"].contains("rx_packets"));
    assert!(files["machine/settings"].contains("net/ipv4/conf/lo/forwarding: 1"));
    for name in [
        "endpoints.json",
        "rules.json",
        "desired.json",
        "contents.txt",
    ] {
        assert!(files.contains_key(name), "{name}");
    }

    let file = path("gateway.tar.gz");
    let printed = gateway.must(&words(&file, &gateway.config_path()));
    println!("{}", printed.unwrap_or_else(|e| panic!("{e}")));
    let files = unpacked(&file);
    has_no_secret(&files, &secrets);
    assert!(files["status.json"].contains("\"circuits\""));
    assert!(files["configuration.json"].contains("(removed)"));

    // A daemon that is down.
    appliance.kill().unwrap_or_else(|e| panic!("{e}"));
    let file = path("down.tar.gz");
    let printed = appliance.must(&words(&file, &appliance.config_path()));
    let printed = printed.unwrap_or_else(|e| panic!("{e}"));
    assert!(printed.contains("missing: status.json: "), "{printed}");
    let files = unpacked(&file);
    has_no_secret(&files, &secrets);
    assert!(files.contains_key("configuration.json") && files.contains_key("machine/interfaces"));
    // Nothing is overwritten.
    let again = appliance.cli(&words(&file, &appliance.config_path()));
    assert!(!again.unwrap_or_else(|e| panic!("{e}")).ok());
}
