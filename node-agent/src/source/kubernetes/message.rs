//! What lists and watches are made of, as far as it is read.

use super::api::Failure;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;

/// On the bookmark that ends a streaming list's first part.
const ANNOTATION_LISTED: &str = "k8s.io/initial-events-end";

/// One line of a watch.
#[derive(Deserialize)]
pub(super) struct Frame<'a> {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// A bookmark: a version with no object.
#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BookmarkMetadata {
    pub(super) resource_version: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct Page<'a> {
    pub(super) metadata: PageMetadata,
    #[serde(borrow)]
    pub(super) items: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMetadata {
    pub(super) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

impl<'a> Frame<'a> {
    pub(super) fn read(json: &'a [u8]) -> Result<Self, Failure> {
        serde_json::from_slice(json).map_err(|error| Failure::garbage(&error, json))
    }
}

impl<'a> Page<'a> {
    pub(super) fn read(json: &'a [u8]) -> Result<Self, Failure> {
        serde_json::from_slice(json).map_err(|error| Failure::garbage(&error, json))
    }
}

impl BookmarkMetadata {
    pub(super) fn read(json: &[u8]) -> Result<Self, Failure> {
        let bookmark: Bookmark =
            serde_json::from_slice(json).map_err(|error| Failure::garbage(&error, json))?;
        Ok(bookmark.metadata)
    }

    /// Whether it ends a streaming list's first part.
    pub(super) fn ends_list(&self) -> bool {
        self.annotations.get(ANNOTATION_LISTED).is_some_and(|value| value == "true")
    }
}
