//! Reads JSON objects as Go's encoding/json does, which is what wrote them: the case of keys does not matter, and null
//! means that a field is absent.
use std::fmt;

use anyhow::{Context as _, Result, anyhow};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of one JSON object.
pub(crate) struct Fields(Map<String, Value>);

/// A value of another type than the one that is wanted, as it stands in the text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WrongType(String);

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Fields {
    /// Reads the text of an object. The error is a phrase without its subject.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let value = serde_json::from_slice(text).map_err(|error| anyhow!("is not JSON ({error})"))?;
        Self::of(value).context("is JSON, but not an object")
    }

    /// The fields of a value that is an object.
    pub(crate) fn of(value: Value) -> Option<Self> {
        match value {
            Value::Object(fields) => Some(Self(fields)),
            _ => None,
        }
    }

    /// The value of `name`; an exact match goes before one in another case.
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.written(name).filter(|value| !value.is_null())
    }

    /// The value of `name` as a field of Go's type `json.RawMessage` has it, to which null is a value like any other.
    pub(crate) fn written(&self, name: &str) -> Option<&Value> {
        let any_case = || {
            let found = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value)
        };
        self.0.get(name).or_else(any_case)
    }

    /// The value of `name` as a `T`.
    pub(crate) fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, WrongType> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        T::deserialize(value).map(Some).map_err(|_| WrongType(value.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_in_any_case_and_null_is_absent() {
        let fields = Fields::parse(br#"{"vni":7,"VNI":8,"port":null,"Mtu":"x"}"#).unwrap();
        assert_eq!(fields.get::<u32>("VNI"), Ok(Some(8)));
        assert_eq!(fields.get::<u32>("Vni"), Ok(Some(8)));
        assert_eq!(fields.get::<u32>("Port"), Ok(None));
        assert_eq!(fields.get::<u32>("Absent"), Ok(None));
        assert_eq!(fields.get::<u32>("MTU"), Err(WrongType(r#""x""#.to_owned())));
        assert!(Fields::parse(b"[1]").is_err());
        assert!(Fields::parse(b"{").is_err());
    }
}
