//! Writes container images as OCI archives: static binaries from scratch, one layer, no container engine, and the same
//! bytes for the same input. Used by `make images` only; it is on no node.
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | what an image is made of, as YAML |
//! | [`program`] | a binary that may go in: static, and for the right machine |
//! | [`layer`] | the file system, as a tar |
//! | [`oci`] | config, manifest and index, as the OCI image spec 1.1 has them |
//! | [`archive`] | all of it in one tar that containerd, podman and skopeo read |
//! | [`tarball`] | a tar whose bytes depend on nothing else |
//! | [`sbom`] | what the binaries are built from, as CycloneDX |

pub mod archive;
pub mod layer;
pub mod oci;
pub mod program;
pub mod sbom;
pub mod spec;
pub mod tarball;
