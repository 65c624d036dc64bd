//! Pods with a user namespace of their own.

use super::*;
use crate::runtime::IdRange;
use std::os::unix::fs::MetadataExt;

const RANGE: IdRange = IdRange { host: 655_360, length: 65_536 };

fn with_users(node: &Node, id: &str) -> SandboxSpec {
    SandboxSpec { users: Some(RANGE), ..node.sandbox_spec(id) }
}

impl Node {
    async fn run_with_users(&self, sandbox: &SandboxSpec, spec: &ContainerSpec) -> String {
        self.runtime.create_sandbox(sandbox).await.unwrap();
        self.runtime.start_container(&sandbox.id, spec).await.unwrap();
        let end = self.ended(&sandbox.id, &spec.id).await;
        let output = self.output(&sandbox.id, &spec.name);
        assert_eq!(end.exit_code, 0, "{output}\n{}", end.message);
        output
    }
}

#[tokio::test]
async fn ids_are_mapped_and_files_keep_their_owners() {
    let node = Node::new().await;
    let volume = node.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("roots"), "text\n").unwrap();
    let script = "cat /proc/self/uid_map /proc/self/gid_map; stat -c '%u %n' /bin/busybox /v/roots /proc/sys/net/ipv4/ip_forward; \
        echo x > /v/new; chown 1000:1000 /v/new; echo y > /own; echo said > /dev/termination-log; hostname; cat /etc/hostname; ls /sys/class/net; \
        echo to-stderr > /dev/stderr; pwd; cat roots; stat -c %a /dev/shm";
    let mut spec = node.shell("c", script);
    spec.cwd = "/v".into();
    spec.mounts.push(Mount { source: volume.clone(), destination: "/v".into(), ..Mount::default() });
    let termination = node.dir.path().join("termination");
    fs::write(&termination, "").unwrap();
    let (source, destination) = (termination.clone(), "/dev/termination-log".into());
    spec.mounts.push(Mount { source, destination, ..Mount::default() });
    let output = node.run_with_users(&with_users(&node, "a"), &spec).await;
    assert_eq!(fs::read_to_string(&termination).unwrap(), "said\n");
    let lines: Vec<String> =
        output.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let map = format!("0 {} {}", RANGE.host, RANGE.length);
    let expected = [
        map.as_str(),
        map.as_str(),
        "0 /bin/busybox",
        "0 /v/roots",
        "0 /proc/sys/net/ipv4/ip_forward",
        "host-a",
        "host-a",
        "lo",
        "/v",
        "text",
        "1777",
    ];
    let seen: Vec<&str> = lines.iter().map(String::as_str).filter(|l| *l != "to-stderr").collect();
    assert_eq!(seen, expected, "{output}");
    assert!(lines.iter().any(|l| l == "to-stderr"));
    // On the disk a volume has the ids of the container, and the root filesystem those of the host.
    assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 1000);
    let upper = node.config.data_dir.join("containers/a/c.0/u");
    assert_eq!(fs::metadata(upper.join("own")).unwrap().uid(), RANGE.host);
    assert_eq!(fs::metadata(upper.join("v")).unwrap().uid(), RANGE.host, "mount points are the container's");
    node.finish().await;
}

#[tokio::test]
async fn root_is_root_inside_only() {
    let node = Node::new().await;
    let secret = node.dir.path().join("secret");
    fs::write(&secret, "host").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut spec = node.shell(
        "c",
        "id -u; grep CapEff /proc/self/status; echo 1 > /proc/sys/kernel/panic; mknod /null c 1 3; true",
    );
    spec.unmasked = true;
    let output = node.run_with_users(&with_users(&node, "a"), &spec).await;
    assert!(output.starts_with("0\n"), "{output}");
    assert!(output.contains("a80425fb"), "{output}");
    assert_eq!(
        output.matches("ermission denied").count() + output.matches("not permitted").count(),
        2,
        "{output}"
    );
    node.finish().await;
}

#[tokio::test]
async fn commands_and_shared_processes_are_in_the_namespace() {
    let node = Node::new().await;
    let sandbox = SandboxSpec { share_pid: true, ..with_users(&node, "a") };
    node.runtime.create_sandbox(&sandbox).await.unwrap();
    let mut spec = node.container("c", &["sleep", "1000"]);
    spec.uid = Some(1000);
    node.runtime.start_container("a", &spec).await.unwrap();
    let result =
        node.exec("a", "c.0", &["/bin/sh", "-c", "id -u; cat /proc/1/comm; cat /proc/self/uid_map"]).await;
    let output = String::from_utf8_lossy(&result.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    let stderr = String::from_utf8_lossy(&result.stderr);
    assert_eq!(output, format!("1000 pause 0 {} {}", RANGE.host, RANGE.length), "{stderr}");
    // The host sees ids of the range.
    let pid = node.pid("a", "c.0").await;
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), RANGE.host + 1000);
    node.finish().await;
}
