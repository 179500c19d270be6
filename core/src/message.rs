//! API messages inside our own records: written as their protobuf bytes, never field by field.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use piton_proto::common::{Payload, Payloads};
use prost::Message;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A protobuf message that serialises as one byte string.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proto<M>(pub M);

impl<M> Deref for Proto<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0
    }
}

impl<M> DerefMut for Proto<M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.0
    }
}

impl<M: Message> Serialize for Proto<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0.encode_to_vec())
    }
}

impl<'de, M: Message + Default> Deserialize<'de> for Proto<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes<M>(PhantomData<M>);
        impl<M: Message + Default> Visitor<'_> for Bytes<M> {
            type Value = Proto<M>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the bytes of a protobuf message")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                M::decode(bytes).map(Proto).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(Bytes(PhantomData))
    }
}

/// A text as the JSON payload that SDKs read. It holds nothing that JSON would escape.
pub(crate) fn json_text(text: &str) -> Payloads {
    let encoding = ("encoding".to_owned(), bytes::Bytes::from_static(b"json/plain"));
    let data = format!("\"{text}\"").into();
    let payload = Payload { metadata: [encoding].into(), data, ..Default::default() };
    Payloads { payloads: vec![payload] }
}
