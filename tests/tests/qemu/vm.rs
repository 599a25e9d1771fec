//! A virtual machine under QEMU, by emulation alone (TCG), and a shell in it.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    initramfs::Archive,
    wire::{Host, Wire},
};

const QEMU: &str = "qemu-system-x86_64";
/// How long a boot may take; it takes about 6 s.
const BOOT: Duration = Duration::from_secs(90);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);

/// The first program of the guest: loads drivers, names the NICs by their MAC addresses, then runs
/// each line that it receives and answers with its output and status.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin HOME=/
# The shell prefers its own ip to that of iproute2.
ip() { /sbin/ip "$@"; }
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
for module in $(cat /modules/load); do
    test -e /modules/$module.ko && insmod /modules/$module.ko
done
ip link set lo up
for path in /sys/class/net/*; do
    test -e $path/address || continue
    name=$(sed -n "s/^$(cat $path/address) //p" /etc/nics)
    test -n "$name" && ip link set $(basename $path) name $name && ip link set $name up
done
port=/dev/$(basename $(dirname /sys/class/virtio-ports/*/name))
exec 3<>$port
echo "@@ 0" >&3
while IFS= read -r line <&3; do
    output=$(eval "$line" 2>&1)
    status=$?
    printf '%s\n@@ %d\n' "$output" $status >&3
done
poweroff -f
"#;

/// A NIC of the guest.
pub struct Nic {
    /// Its name in the guest.
    pub name: &'static str,
    /// The device of QEMU, with its settings.
    pub device: &'static str,
    /// The hosts on its wire. `None`: the NIC is on a tap that nothing else uses, so that it has
    /// the offloads of one.
    pub hosts: Option<Vec<Host>>,
}

/// A running virtual machine. It ends when dropped.
pub struct Vm {
    qemu: Child,
    shell: BufReader<UnixStream>,
    wires: BTreeMap<&'static str, Wire>,
    folder: tempfile::TempDir,
}

impl Vm {
    /// Boots a kernel with these NICs. `None` where something is missing, which is reported as a
    /// skip.
    pub fn boot(kernel: &str, nics: Vec<Nic>) -> Option<Self> {
        let kernels = env::var_os("CAUSEWAY_QEMU").map(PathBuf::from);
        let kernel = kernels.unwrap_or_default().join(kernel);
        if let Some(missing) = missing(&kernel) {
            causeway_tests::skip(&missing);
            return None;
        }
        let begun = Instant::now();
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("initramfs"), archive(&kernel, &nics)).expect("written");
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL"]);
        if nics.iter().any(|nic| nic.hosts.is_none()) {
            // The tap is in a namespace that ends with QEMU.
            qemu.args(["unshare", "--net"]);
        }
        qemu.args([QEMU, "-accel", "tcg,thread=multi", "-cpu", "max"]);
        qemu.args(["-smp", "2", "-m", "1024", "-nodefaults", "-display", "none"]);
        qemu.args([
            "-no-reboot",
            "-append",
            "console=ttyS0 quiet panic=-1 net.ifnames=0",
        ]);
        qemu.arg("-kernel").arg(kernel.join("vmlinuz"));
        qemu.arg("-initrd").arg(at("initramfs"));
        qemu.arg("-serial")
            .arg(format!("file:{}", at("console").display()));
        let control = at("control");
        let socket = format!(
            "socket,id=control,path={},server=on,wait=off",
            control.display()
        );
        qemu.args(["-chardev", &socket, "-device", "virtio-serial-pci"]);
        qemu.args(["-device", "virtserialport,chardev=control,name=control"]);
        let mut wires = BTreeMap::new();
        for (number, nic) in nics.into_iter().enumerate() {
            let (name, device) = (nic.name, nic.device);
            let netdev = match nic.hosts {
                Some(hosts) => {
                    let (here, there) = (at(&format!("{name}.wire")), at(&format!("{name}.nic")));
                    let wire = Wire::open(&here, &there, hosts).expect("a wire");
                    wires.insert(name, wire);
                    format!(
                        "dgram,id={name},local.type=unix,local.path={},remote.type=unix,\
                         remote.path={}",
                        there.display(),
                        here.display()
                    )
                }
                None => format!("tap,id={name},ifname=tap{number},script=no,downscript=no"),
            };
            qemu.args(["-netdev", &netdev, "-device"]);
            qemu.arg(format!("{device},netdev={name},mac={}", mac(number)));
        }
        let log = fs::File::create(at("qemu")).expect("a log");
        let mut qemu = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("setpriv starts");
        let shell = connect(&control, &mut qemu).unwrap_or_else(|| {
            let log = fs::read_to_string(at("qemu")).unwrap_or_default();
            panic!("{QEMU} does not start: {log}")
        });
        let mut vm = Self {
            qemu,
            shell: BufReader::new(shell),
            wires,
            folder,
        };
        vm.answer("boot", BOOT);
        println!("booted in {:.1} s", begun.elapsed().as_secs_f64());
        Some(vm)
    }

    /// The wire of a NIC.
    pub fn wire(&self, nic: &str) -> &Wire {
        &self.wires[nic]
    }

    /// Runs a line of shell in the guest. Returns its status and output.
    pub fn run(&mut self, line: &str) -> (i32, String) {
        assert!(!line.contains('\n'), "one line");
        let sent = self
            .shell
            .get_mut()
            .write_all(format!("{line}\n").as_bytes());
        sent.unwrap_or_else(|e| panic!("{line}: {e}\n{}", self.console()));
        self.answer(line, COMMAND)
    }

    /// Runs a line of shell that must succeed.
    pub fn ok(&mut self, line: &str) -> String {
        let (status, output) = self.run(line);
        assert_eq!(status, 0, "{line}: {output}");
        output
    }

    /// Writes a file in the guest.
    pub fn write(&mut self, path: &str, text: &str) {
        let lines: Vec<String> = text.lines().map(|l| format!("'{l}'")).collect();
        for (at, some) in lines.chunks(20).enumerate() {
            let to = if at == 0 { ">" } else { ">>" };
            self.ok(&format!("printf '%s\\n' {} {to} {path}", some.join(" ")));
        }
    }

    fn answer(&mut self, what: &str, timeout: Duration) -> (i32, String) {
        let timeout = Some(timeout);
        self.shell
            .get_ref()
            .set_read_timeout(timeout)
            .expect("a timeout");
        let mut output = String::new();
        loop {
            let mut line = String::new();
            let read = self.shell.read_line(&mut line);
            if !matches!(read, Ok(1..)) {
                panic!("{what}: no answer ({read:?})\n{output}\n{}", self.console());
            }
            if let Some(status) = line.strip_prefix("@@ ") {
                return (status.trim().parse().unwrap_or(-1), output);
            }
            output.push_str(&line);
        }
    }

    /// The output of the guest's kernel.
    pub fn console(&self) -> String {
        let text = fs::read(self.folder.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Connects before the guest opens its end.
fn connect(path: &Path, qemu: &mut Child) -> Option<UnixStream> {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until && matches!(qemu.try_wait(), Ok(None)) {
        if let Ok(stream) = UnixStream::connect(path) {
            return Some(stream);
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

fn mac(number: usize) -> String {
    format!("52:54:00:00:00:{:02x}", number + 1)
}

/// The first requirement that this machine lacks.
fn missing(kernel: &Path) -> Option<String> {
    let installed = |program: &str| {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).any(|folder| folder.join(program).exists())
    };
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root, for a tap".to_owned());
    }
    if !installed(QEMU) {
        return Some(format!("{QEMU} is not installed"));
    }
    if !kernel.join("vmlinuz").exists() {
        let kernel = kernel.display();
        return Some(format!(
            "no kernel at {kernel}: run `cargo xtask test --tier qemu`"
        ));
    }
    None
}

/// A program of this machine.
fn found(name: &str) -> PathBuf {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let paths = folders.map(|folder| Path::new(folder).join(name));
    let path = paths.into_iter().find(|path| path.exists());
    path.unwrap_or_else(|| panic!("{name} is not installed"))
}

fn archive(kernel: &Path, nics: &[Nic]) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in [
        "/dev", "/proc", "/sys", "/run", "/tmp", "/var/lib", "/etc", "/modules",
    ] {
        archive.folder(folder);
    }
    archive.file("/init", 0o755, INIT.as_bytes());
    let names = nics.iter().enumerate();
    let names: String = names
        .map(|(number, nic)| format!("{} {}\n", mac(number), nic.name))
        .collect();
    archive.file("/etc/nics", 0o644, names.as_bytes());
    let built = |variable: &str| {
        let path = env::var_os(variable);
        PathBuf::from(path.unwrap_or_else(|| panic!("{variable} is not set: use cargo xtask test")))
    };
    let programs = [
        ("/bin/busybox", found("busybox")),
        ("/sbin/ip", found("ip")),
        ("/sbin/ethtool", found("ethtool")),
        ("/bin/causeway-appliance", built("CAUSEWAY_APPLIANCE")),
    ];
    for (path, of) in programs {
        let added = archive.program(path, &of);
        added.unwrap_or_else(|e| panic!("{}: {e}", of.display()));
    }
    let object = fs::read(built("CAUSEWAY_BPF_OBJECT")).expect("the built object");
    archive.file("/appliance.bpf.o", 0o644, &object);
    for entry in fs::read_dir(kernel.join("modules"))
        .expect("modules")
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let bytes = fs::read(entry.path()).expect("a module");
        archive.file(&format!("/modules/{name}"), 0o644, &bytes);
    }
    archive.finish()
}
