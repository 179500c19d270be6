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
        ProtoRef(&self.0).serialize(serializer)
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

/// A message that is only looked at, to be written as [`Proto`] is.
pub struct ProtoRef<'a, M>(pub &'a M);

impl<M: Message> Serialize for ProtoRef<'_, M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0.encode_to_vec())
    }
}

/// For fields that are messages, `#[serde(with = "message::one")]`: written as [`Proto`] is.
pub mod one {
    use super::*;

    pub fn serialize<M: Message, S: Serializer>(message: &M, out: S) -> Result<S::Ok, S::Error> {
        ProtoRef(message).serialize(out)
    }

    pub fn deserialize<'de, M, D>(from: D) -> Result<M, D::Error>
    where
        M: Message + Default,
        D: Deserializer<'de>,
    {
        Proto::deserialize(from).map(|Proto(message)| message)
    }
}

/// The same for messages that may be absent.
pub mod optional {
    use super::*;

    pub fn serialize<M, S>(message: &Option<M>, out: S) -> Result<S::Ok, S::Error>
    where
        M: Message,
        S: Serializer,
    {
        message.as_ref().map(ProtoRef).serialize(out)
    }

    pub fn deserialize<'de, M, D>(from: D) -> Result<Option<M>, D::Error>
    where
        M: Message + Default,
        D: Deserializer<'de>,
    {
        let given = Option::<Proto<M>>::deserialize(from)?;
        Ok(given.map(|Proto(message)| message))
    }
}

/// The same for many of one kind: one byte string, in it each with its length before it.
pub mod list {
    use super::*;

    pub fn serialize<M, S>(messages: &[M], out: S) -> Result<S::Ok, S::Error>
    where
        M: Message,
        S: Serializer,
    {
        let lengths = messages.iter().map(Message::encoded_len);
        let size = lengths.map(|length| prost::length_delimiter_len(length) + length).sum();
        let mut bytes = Vec::with_capacity(size);
        for message in messages {
            message.encode_length_delimited(&mut bytes).expect("a vector grows");
        }
        out.serialize_bytes(&bytes)
    }

    pub fn deserialize<'de, M, D>(from: D) -> Result<Vec<M>, D::Error>
    where
        M: Message + Default,
        D: Deserializer<'de>,
    {
        struct Bytes<M>(PhantomData<M>);
        impl<M: Message + Default> Visitor<'_> for Bytes<M> {
            type Value = Vec<M>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the bytes of protobuf messages")
            }

            fn visit_bytes<E: Error>(self, mut bytes: &[u8]) -> Result<Self::Value, E> {
                let mut messages = Vec::new();
                while !bytes.is_empty() {
                    messages.push(M::decode_length_delimited(&mut bytes).map_err(E::custom)?);
                }
                Ok(messages)
            }
        }
        from.deserialize_bytes(Bytes(PhantomData))
    }
}

/// For fields that are the API's enumerations: written as their numbers.
pub mod number {
    use super::*;

    pub fn serialize<V, S>(value: &V, out: S) -> Result<S::Ok, S::Error>
    where
        V: Copy + Into<i32>,
        S: Serializer,
    {
        out.serialize_i32((*value).into())
    }

    pub fn deserialize<'de, V, D>(from: D) -> Result<V, D::Error>
    where
        V: TryFrom<i32, Error: std::fmt::Display>,
        D: Deserializer<'de>,
    {
        V::try_from(i32::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// A text as the JSON payload that SDKs read. It holds nothing that JSON would escape.
pub(crate) fn json_text(text: &str) -> Payloads {
    let encoding = ("encoding".to_owned(), bytes::Bytes::from_static(b"json/plain"));
    let data = format!("\"{text}\"").into();
    let payload = Payload { metadata: [encoding].into(), data, ..Default::default() };
    Payloads { payloads: vec![payload] }
}
