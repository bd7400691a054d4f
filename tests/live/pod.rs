//! A pod, run by containerd's own CRI service as the kubelet would ask for it, but without a kubelet: gRPC by hand, which
//! `curl` carries over the lab's socket.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::{Containerd, Lab};

/// CRI configured as these machines need it: a pause image of our own, no limit that would need more privilege.
fn config(containerd: Containerd) -> &'static str {
    match containerd {
        Containerd::V2_1 => {
            "version = 3
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = 'localhost/pause:lab'
"
        }
        Containerd::V1_6 | Containerd::V1_7 => {
            "version = 2
[plugins.'io.containerd.grpc.v1.cri']
  restrict_oom_score_adj = true
  sandbox_image = 'localhost/pause:lab'
"
        }
    }
}

/// The busybox image again, with a command that stays.
const PAUSE_IMAGE: &str = r#"
mkdir /tmp/pause; cd /tmp/pause; tar -xf /images/busybox.tar
blob() { echo "blobs/sha256/$(jq -r "$1" "$2" | sed s/sha256://)"; }
keep() { local d; d=$(sha256sum < "$1" | cut -c1-64); mv "$1" "blobs/sha256/$d"; echo "$d $(stat -c %s "blobs/sha256/$d")"; }
manifest=$(blob '.manifests[0].digest' index.json); config=$(blob .config.digest "$manifest")
jq '.config.Cmd = ["/bin/sleep", "100000"]' "$config" > new; read -r digest size <<< "$(keep new)"
jq --arg d "sha256:$digest" --argjson s "$size" '.config.digest = $d | .config.size = $s' "$manifest" > new; read -r digest size <<< "$(keep new)"
jq --arg d "sha256:$digest" --argjson s "$size" '.manifests = [.manifests[0] | .digest = $d | .size = $s
    | .annotations = {"io.containerd.image.name": "localhost/pause:lab"}]' index.json > new; mv new index.json
tar -cf /tmp/pause.tar oci-layout index.json blobs; rm -r /tmp/pause
"#;

/// Starts containerd with CRI, and with the images for pods. False, said aloud, where there is no `curl` to ask it.
pub fn start_containerd(lab: &Lab) -> bool {
    if Command::new("curl").arg("--version").output().is_err() {
        assert!(std::env::var("DEWAR_LIVE").as_deref() != Ok("1"), "DEWAR_LIVE=1, but there is no curl");
        eprintln!("live test skipped: no curl, which pods are asked for with");
        return false;
    }
    let config = config(lab.containerd);
    lab.sh(&format!("mkdir -p /etc/containerd; cat > /etc/containerd/config.toml <<'END'\n{config}END\n{PAUSE_IMAGE}"));
    lab.start_containerd();
    lab.sh("for i in /images/busybox.tar /tmp/pause.tar; do ctr -n k8s.io images import $i; done");
    true
}

/// Runs a pod `default/<pod>` in the host's network, with one container of busybox, and returns the container's id. Its log
/// is `/var/log/pods/<pod>/<name>/0.log`; `mounts` are pairs of a path of the host and one of the container.
pub fn run(lab: &Lab, pod: &str, name: &str, script: &str, mounts: &[(&str, &str)]) -> String {
    Pod::run(lab, "default", pod, &[]).container(lab, name, 0, script, mounts)
}

/// A pod's sandbox.
pub struct Pod {
    namespace: String,
    name: String,
    config: Vec<u8>,
    pub sandbox: String,
}

impl Pod {
    /// Runs a pod without containers in the host's network, with more `labels` than the kubelet gives it.
    pub fn run(lab: &Lab, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Self {
        const HOST_NETWORK: u8 = 2;
        let options = field(1, &[0x08, HOST_NETWORK]);
        let metadata = [text(1, name), text(2, &uid(namespace)), text(3, namespace)].concat();
        let labels: Vec<u8> = kubelets(namespace, name)
            .iter()
            .map(|(k, v)| (*k, v.as_str()))
            .chain(labels.iter().copied())
            .flat_map(|(key, value)| field(6, &[text(1, key), text(2, value)].concat()))
            .collect();
        let log = text(3, &format!("/var/log/pods/{name}"));
        let config = [field(1, &metadata), log, labels, field(8, &field(2, &options))].concat();
        let sandbox = call(lab, "RunPodSandbox", &field(1, &config));
        Self { namespace: namespace.into(), name: name.into(), config, sandbox }
    }

    /// Runs a container of busybox in it, for the time after `attempt` others of this name; its id.
    pub fn container(&self, lab: &Lab, name: &str, attempt: u8, script: &str, mounts: &[(&str, &str)]) -> String {
        let command: Vec<u8> = ["/bin/sh", "-c", script].iter().flat_map(|word| text(3, word)).collect();
        let mounts: Vec<u8> =
            mounts.iter().flat_map(|(host, inside)| field(7, &[text(1, inside), text(2, host)].concat())).collect();
        let labels = kubelets(&self.namespace, &self.name);
        let labels: Vec<u8> = labels
            .iter()
            .map(|(k, v)| (*k, v.as_str()))
            .chain([("io.kubernetes.container.name", name)])
            .flat_map(|(key, value)| field(9, &[text(1, key), text(2, value)].concat()))
            .collect();
        let mut metadata = text(1, name);
        // Nothing says that it is 0.
        if attempt > 0 {
            metadata.extend([0x10, attempt]);
        }
        let config = [
            field(1, &metadata),
            field(2, &text(1, "localhost/busybox:lab")),
            command,
            mounts,
            labels,
            text(11, &format!("{name}/{attempt}.log")),
        ]
        .concat();
        lab.sh(&format!("mkdir -p /var/log/pods/{}/{name}", self.name));
        let request = [text(1, &self.sandbox), field(2, &config), field(3, &self.config)].concat();
        let container = call(lab, "CreateContainer", &request);
        call(lab, "StartContainer", &text(1, &container));
        container
    }
}

/// Stops a container at once.
pub fn stop(lab: &Lab, container: &str) {
    call(lab, "StopContainer", &text(1, container));
}

/// The labels that the kubelet gives a pod and its containers (Kubernetes `pkg/kubelet/kuberuntime/labels.go`).
fn kubelets(namespace: &str, pod: &str) -> [(&'static str, String); 3] {
    [
        ("io.kubernetes.pod.name", pod.to_owned()),
        ("io.kubernetes.pod.namespace", namespace.to_owned()),
        ("io.kubernetes.pod.uid", uid(namespace)),
    ]
}

fn uid(namespace: &str) -> String {
    format!("uid-{namespace}")
}

/// Calls a method of CRI's `RuntimeService`; the answer's first field, which is an id if it has any.
#[track_caller]
fn call(lab: &Lab, method: &str, request: &[u8]) -> String {
    let socket = format!("/proc/{}/root/run/containerd/containerd.sock", lab.init());
    let mut curl = Command::new("curl")
        .args(["-sS", "--http2-prior-knowledge", "--unix-socket", &socket, "--data-binary", "@-", "-D", "/dev/stderr"])
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
        .arg(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl was there a moment ago");
    // Not compressed, so long (gRPC over HTTP/2, "Length-Prefixed-Message").
    let length = u32::try_from(request.len()).expect("a small request").to_be_bytes();
    let mut body = curl.stdin.take().expect("it is piped");
    body.write_all(&[&[0], &length[..], request].concat()).expect("curl reads its stdin");
    drop(body);
    let output = curl.wait_with_output().expect("curl ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("grpc-status: 0"), "{method}: {said}");
    let answer = output.stdout.get(5..).unwrap_or_default();
    match answer {
        [0x0a, length, rest @ ..] => String::from_utf8_lossy(&rest[..usize::from(*length)]).into_owned(),
        _ => String::new(),
    }
}

/// A protobuf field with a length: a message or bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let (mut out, mut length) = (vec![number << 3 | 2], content.len());
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(content);
    out
}

fn text(number: u8, text: &str) -> Vec<u8> {
    field(number, text.as_bytes())
}
