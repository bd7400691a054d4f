//! Media types and annotations, each once.

/// OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image config.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, plain.
pub const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip; the only one `ctr containers restore --rw` takes.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Docker's manifest list, index and manifest at once in older images.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's gzip layer.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker's plain layer.
pub const DOCKER_LAYER_TAR: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker's zstd layer.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// The CRIU images: a plain, flat tar (containerd `core/images/mediatypes.go`, as the four below).
pub const CRIU_TAR: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
/// The container's spec: a protobuf Any that holds its JSON.
pub const CHECKPOINT_CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";
/// How the dump was made: a protobuf Any of `CheckpointOptions`.
pub const CHECKPOINT_OPTIONS: &str = "application/vnd.containerd.container.checkpoint.options.v1+proto";
/// The runtime's options: a protobuf Any.
pub const RUNTIME_OPTIONS: &str = "application/vnd.containerd.container.checkpoint.runtime.options+proto";
/// The content of one mount, or the log: a plain tar (the first `ctr` of 2017 wrote them so).
pub const RESOURCE_TAR: &str = "application/vnd.containerd.container.resource.tar";

/// What a checkpoint could not hold: JSON, [`super::account::Account`].
pub const ACCOUNT: &str = "application/vnd.dewar.account.v1+json";

/// The raw capture of a task's memory: a plain tar, [`super::raw`]. It cannot be restored.
pub const RAW_TAR: &str = "application/vnd.dewar.memory.raw.v1.tar";
/// What else of a task is volatile: JSON, [`super::volatile::Volatile`].
pub const VOLATILE: &str = "application/vnd.dewar.volatile.v1+json";
/// The artifact with the acquisition record of a checkpoint: its `artifactType`, and its first layer, JSON
/// ([`crate::evidence::Record`]).
pub const EVIDENCE: &str = "application/vnd.dewar.evidence.v1+json";
/// Its second layer: what was read, one JSON document a line ([`crate::evidence::Source`]).
pub const EVIDENCE_SOURCES: &str = "application/vnd.dewar.evidence.sources.v1+jsonl";
/// Its third layer: the blobs of the checkpoint as `sha256sum -c` reads them.
pub const EVIDENCE_SUMS: &str = "application/vnd.dewar.evidence.sha256sums.v1";
/// Its last layer, if it is signed: 64 bytes, Ed25519 (RFC 8032) over the bytes of the record.
pub const EVIDENCE_SIGNATURE: &str = "application/vnd.dewar.evidence.signature.v1+ed25519";
/// The config of a manifest that has none: `{}` (OCI image spec 1.1, manifest.md, "Guidance for an Empty Descriptor").
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// On an artifact's entry in `index.json`: the digest of the checkpoint index that it is about.
pub const EVIDENCE_OF: &str = "org.dewar.evidence.of";
/// On a signature: the SHA-256 of the public key (its SubjectPublicKeyInfo, DER).
pub const EVIDENCE_KEY: &str = "org.dewar.evidence.key";

/// A sealed checkpoint: the `artifactType` of its manifest, whose layers are age files ([`super::sealed`]).
pub const SEALED: &str = "application/vnd.dewar.sealed.v1";
/// Its first layer: what the others are, [`super::sealed::Contents`].
pub const SEALED_CONTENTS: &str = "application/vnd.dewar.sealed.contents.v1+age";
/// Its other layers: a blob each. What of, only the contents say.
pub const SEALED_BLOB: &str = "application/vnd.dewar.sealed.blob.v1+age";
/// On its entry in `index.json`: to how many recipients it is sealed.
pub const SEALED_RECIPIENTS: &str = "org.dewar.sealed.recipients";

/// The name under which `ctr images import` records an entry of `index.json`.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// OCI's name of an entry; in a checkpoint index, the base image's name.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// OCI's time of an entry.
pub const CREATED: &str = "org.opencontainers.image.created";
/// In a checkpoint index: the container's runtime.
pub const CHECKPOINT_RUNTIME: &str = "io.containerd.checkpoint.runtime";
/// In a checkpoint index: the container's snapshotter.
pub const CHECKPOINT_SNAPSHOTTER: &str = "io.containerd.checkpoint.snapshotter";

/// On a checkpoint's entry in `index.json` (names of `checkpointctl`, `lib/annotations.go`).
pub const CRIU_VERSION: &str = "org.criu.checkpoint.criu.version";
/// Program that wrote the bundle.
pub const ENGINE_NAME: &str = "org.criu.checkpoint.engine.name";
/// Its version.
pub const ENGINE_VERSION: &str = "org.criu.checkpoint.engine.version";
/// The container's id.
pub const CONTAINER_NAME: &str = "org.criu.checkpoint.container.name";
/// The image's name.
pub const ROOTFS_IMAGE_NAME: &str = "org.criu.checkpoint.rootfsImageName";
/// The runtime's name.
pub const RUNTIME_NAME: &str = "org.criu.checkpoint.runtime.name";
/// The host's architecture.
pub const HOST_ARCH: &str = "org.criu.checkpoint.host.arch";
/// The host's kernel.
pub const HOST_KERNEL: &str = "org.criu.checkpoint.host.kernel";
/// `1` or `2`: a dump made under one cgroup version restores under the same only.
pub const CGROUP_VERSION: &str = "org.criu.checkpoint.cgroup.version";

/// On a mount's entry: where it was mounted.
pub const MOUNT_DESTINATION: &str = "org.dewar.mount.destination";
/// On the same entry: what was mounted there, `bind` or `tmpfs`; or `log`, the container's log, found there on the host.
pub const MOUNT_TYPE: &str = "org.dewar.mount.type";
/// On a tar of a checkpoint: it holds what the rw layer cannot (the value says whose: `rw layer`).
pub const BESIDE: &str = "org.dewar.beside";
/// On an entry of `index.json`: the digest of the entry without this, since nothing else vouches for that file.
pub const SEAL: &str = "org.dewar.entry.digest";
/// On a checkpoint's entry: its base image is only referenced, so its blobs are meant to be absent.
pub const IMAGE_OMITTED: &str = "org.dewar.image.omitted";
/// On an image made again, and on the entry of a checkpoint that stands on it: the digest of the original.
pub const IMAGE_ORIGINAL: &str = "org.dewar.image.original";
/// There, too: `exact` if all layers have their recorded diff ids, otherwise `equivalent`.
pub const IMAGE_RECREATED: &str = "org.dewar.image.recreated";
/// On an image made again without the original's config: `empty`.
pub const CONFIG_RECREATED: &str = "org.dewar.config.recreated";
/// On a layer made again from its snapshot: `exact` if it has its recorded diff id, otherwise `equivalent`.
pub const LAYER_RECREATED: &str = "org.dewar.layer.recreated";
/// There, too: the digest of the original's blob.
pub const LAYER_ORIGINAL: &str = "org.dewar.layer.original";
/// There, too, if it is exact: who writes layers so.
pub const LAYER_WRITER: &str = "org.dewar.layer.writer";
/// On a checkpoint's entry: the namespace the container's record was in.
pub const NAMESPACE: &str = "org.dewar.container.namespace";
/// On a member that is memory: `false`, it can be looked at and not brought back.
pub const RESTORABLE: &str = "org.dewar.restorable";
