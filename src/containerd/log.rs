//! Where the records of a container say its log is.
//!
//! | written by | where it stands |
//! |---|---|
//! | CRI | extension `io.cri-containerd.container.metadata`: JSON, `Metadata.LogPath` (containerd `internal/cri/store/container/metadata.go`) |
//! | any client | label `nerdctl/log-uri`: `file://` and a path (nerdctl `pkg/labels/labels.go`) |
//! | nerdctl | label `nerdctl/state-dir`: its json-file logger writes `<id>-json.log` there (nerdctl `pkg/logging/json_logger.go`) |

use super::{
    identity::{self, CRI_CONTAINER},
    meta::Container,
};

/// The extension of a container's record in which CRI keeps what it knows of it.
pub const CRI_METADATA: &str = CRI_CONTAINER;

/// The path of the container's log on the host, if its record has one; `cri` is the extension [`CRI_METADATA`], a
/// protobuf Any.
pub fn path(container: &Container, cri: Option<&[u8]>) -> Option<String> {
    let found = cri.and_then(identity::cri_log_path).or_else(|| of_labels(container))?;
    (found.starts_with('/') && !found.ends_with('/')).then_some(found)
}

fn of_labels(container: &Container) -> Option<String> {
    let label = |key: &str| container.labels.get(key).filter(|value| !value.is_empty());
    if let Some(file) = label("nerdctl/log-uri").and_then(|uri| uri.strip_prefix("file://")) {
        // What follows a `?` is for the shim.
        return file.split('?').next().map(str::to_owned);
    }
    let dir = label("nerdctl/state-dir")?;
    Some(format!("{}/{}-json.log", dir.trim_end_matches('/'), container.name.id))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::id::{ContainerRef, SnapshotKey};
    use crate::proto::Any;

    fn container(labels: &[(&str, &str)]) -> Container {
        Container {
            name: ContainerRef { namespace: "k8s.io".parse().unwrap(), id: "web".parse().unwrap() },
            image: String::new(),
            snapshotter: String::new(),
            snapshot_key: SnapshotKey(String::new()),
            runtime: String::new(),
            runtime_options: Vec::new(),
            spec: Default::default(),
            labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            created_at: None,
            origin: Default::default(),
        }
    }

    fn cri(json: &str) -> Vec<u8> {
        let type_url = "github.com/containerd/cri/pkg/store/container/Metadata".into();
        Any { type_url, value: json.as_bytes().to_vec() }.encode_to_vec()
    }

    #[test]
    fn cri_keeps_it_in_an_extension() {
        // As containerd 1.6 to 2.3 write it, with more members around.
        let whole = r#"{"Version":"v1","Metadata":{"ID":"web","Name":"web_shop_default_uid_0","SandboxID":"s","Config":
            {"metadata":{"name":"web"},"log_path":"web/0.log"},"ImageRef":"sha256:00","LogPath":
            "/var/log/pods/default_shop_uid/web/0.log","StopSignal":"","ProcessLabel":""}}"#;
        let plain = container(&[]);
        let of = |json: &str| path(&plain, Some(&cri(json)));
        assert_eq!(of(whole).as_deref(), Some("/var/log/pods/default_shop_uid/web/0.log"));
        for nothing in
            [r#"{"Metadata":{"LogPath":""}}"#, "{}", "[]", "nonsense", r#"{"Metadata":{"LogPath":"web/0.log"}}"#]
        {
            assert_eq!(of(nothing), None, "{nothing}");
        }
        assert_eq!(path(&plain, Some(b"\xff\xff")), None);
    }

    #[test]
    fn nerdctl_keeps_it_in_labels() {
        let dir = ("nerdctl/state-dir", "/var/lib/nerdctl/1935db59/containers/default/web");
        for (labels, right) in [
            (&[("nerdctl/log-uri", "file:///var/log/web.log?maxsize=1"), dir][..], Some("/var/log/web.log")),
            (
                &[("nerdctl/log-uri", "binary:///usr/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=x"), dir],
                Some("/var/lib/nerdctl/1935db59/containers/default/web/web-json.log"),
            ),
            (&[("nerdctl/log-uri", "file://log/web.log")], None),
            (&[("nerdctl/log-uri", "file:///")], None),
            (&[], None),
        ] {
            assert_eq!(path(&container(labels), None).as_deref(), right, "{labels:?}");
        }
    }
}
