//! Bounds what bytes from a peer make their reader do, whatever the type: time, memory and stack.
//!
//! A [`Guard`] stands between a type's `Deserialize` and the format's `Deserializer`, and hands every call on:
//!
//! ```text
//! Vec<Order>  ->  Guard  ->  format  ->  Watched visitor  ->  Elements  ->  Order  ->  Guard  -> ...
//! ```
//!
//! It takes from a [`Budget`] before a collection's first element is read, for all the elements that the bytes announce;
//! so a length that lies fails at once. Each value has a [`Place`]: the bytes that are already accounted for where it will
//! lie, in a collection or in a field of another. What is larger than its place was boxed, and is taken from the budget
//! too. Text and bytes need no budget: they are borrowed from the body, so they cannot be longer than it is.
//!
//! The format must say exactly how many elements follow, and must know a type from its `Deserialize` alone.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// Bytes of memory for each byte of the body. A text or a list takes 24, and one that is empty has one byte.
pub(super) const MEMORY_FACTOR: usize = 64;

/// Bytes of memory for a body of any length.
pub(super) const MEMORY_FLOOR: usize = 64 << 10;

/// Levels of nesting: lists, maps, tuples, structs, enums and options within each other.
pub(super) const LEVELS_MAX: u32 = 128;

/// What an element costs at least, in bytes: the time for elements that take no space is bounded too.
const ELEMENT_MIN: usize = 16;

/// Bytes on the stack that are another level. A value is held several times while it is being built, ten times where the
/// compiler does not optimise, and a stack may have only 2 MiB.
const LEVEL_SIZE: usize = 512;

/// From this length on, a tuple may be a list in disguise. Serde's own end at 32.
const TUPLE_MAX: usize = 32;

/// Which limit stopped the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breach {
    Memory,
    Depth,
}

/// What the decoding of one body may still take.
#[derive(Debug)]
pub(super) struct Budget {
    memory: Cell<usize>,
    breach: Cell<Option<Breach>>,
}

impl Budget {
    pub(super) fn for_body(len: usize) -> Self {
        Self { memory: Cell::new(Self::memory_max(len)), breach: Cell::new(None) }
    }

    /// All that a body of this length may take in memory, in bytes.
    pub(super) fn memory_max(len: usize) -> usize {
        len.saturating_mul(MEMORY_FACTOR).saturating_add(MEMORY_FLOOR)
    }

    /// The limit that was met, if one was.
    pub(super) fn breach(&self) -> Option<Breach> {
        self.breach.get()
    }

    #[inline]
    fn take<E: Error>(&self, count: usize, size: usize) -> Result<(), E> {
        match count.checked_mul(size).and_then(|bytes| self.memory.get().checked_sub(bytes)) {
            Some(left) => {
                self.memory.set(left);
                Ok(())
            }
            None => Err(self.stop(Breach::Memory)),
        }
    }

    #[cold]
    fn stop<E: Error>(&self, breach: Breach) -> E {
        self.breach.set(Some(breach));
        E::custom("a limit of the decoder")
    }

    /// How many elements to make room for: no more than can be paid, when they are no larger than honest ones.
    #[inline]
    fn hint(&self, announced: Option<usize>) -> Option<usize> {
        announced.map(|count| count.min(self.memory.get() / MEMORY_FACTOR))
    }
}

/// Reads a whole body as a `T`.
pub(super) struct Root<'a, T> {
    budget: &'a Budget,
    value: PhantomData<T>,
}

impl<'a, T> Root<'a, T> {
    pub(super) fn new(budget: &'a Budget) -> Self {
        Self { budget, value: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Root<'_, T> {
    type Value = T;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, format: D) -> Result<T, D::Error> {
        T::deserialize(Guard { format, place: Place::<T>::of(self.budget, LEVELS_MAX) })
    }
}

/// Where a value will lie: the bytes of a `T` are accounted for.
struct Place<'a, T> {
    budget: &'a Budget,
    /// How many more levels may follow.
    levels: u32,
    value: PhantomData<T>,
}

impl<'a, T> Place<'a, T> {
    #[inline]
    fn of(budget: &'a Budget, levels: u32) -> Self {
        Self { budget, levels, value: PhantomData }
    }

    /// Goes into a `V` that lies here, or in a box that does.
    #[inline]
    fn enter<V, E: Error>(self) -> Result<Inside<'a>, E> {
        let size = size_of::<V>();
        let boxed = size > size_of::<T>();
        if boxed {
            self.budget.take(1, size)?;
        }
        let inside = Inside { budget: self.budget, levels: self.levels };
        inside.deeper(1 + if boxed { levels_of(size) } else { 0 })
    }
}

/// Levels that a value counts for by its size, beside the one that it is.
const fn levels_of(size: usize) -> u32 {
    let levels = size / LEVEL_SIZE;
    if levels > LEVELS_MAX as usize { LEVELS_MAX } else { levels as u32 }
}

/// Within a value, whose parts come next.
#[derive(Clone, Copy)]
struct Inside<'a> {
    budget: &'a Budget,
    levels: u32,
}

impl<'a> Inside<'a> {
    #[inline]
    fn deeper<E: Error>(self, levels: u32) -> Result<Self, E> {
        match self.levels.checked_sub(levels) {
            Some(levels) => Ok(Self { levels, ..self }),
            None => Err(self.budget.stop(Breach::Depth)),
        }
    }

    /// The place of a `T` that is a field of this value, or all there is of it.
    #[inline]
    fn field<T>(self) -> Place<'a, T> {
        Place::of(self.budget, self.levels)
    }

    /// The place of a `T` that is an element of this value and paid for.
    #[inline]
    fn element<T, E: Error>(self) -> Result<Place<'a, T>, E> {
        Ok(self.deeper(levels_of(size_of::<T>()))?.field())
    }
}

/// A deserializer that keeps to a budget.
struct Guard<'a, D, T> {
    format: D,
    place: Place<'a, T>,
}

macro_rules! hand_on {
    ($($method:ident => $to:ident),* $(,)?) => {
        $(
            #[inline]
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                self.format.$to(visitor)
            }
        )*
    };
}

impl<'de, D: Deserializer<'de>, T> Deserializer<'de> for Guard<'_, D, T> {
    type Error = D::Error;

    hand_on! {
        deserialize_bool => deserialize_bool,
        deserialize_i8 => deserialize_i8,
        deserialize_i16 => deserialize_i16,
        deserialize_i32 => deserialize_i32,
        deserialize_i64 => deserialize_i64,
        deserialize_i128 => deserialize_i128,
        deserialize_u8 => deserialize_u8,
        deserialize_u16 => deserialize_u16,
        deserialize_u32 => deserialize_u32,
        deserialize_u64 => deserialize_u64,
        deserialize_u128 => deserialize_u128,
        deserialize_f32 => deserialize_f32,
        deserialize_f64 => deserialize_f64,
        deserialize_char => deserialize_char,
        deserialize_unit => deserialize_unit,
        // The format would allocate what the bytes announce; borrowed, it is compared with what is there.
        deserialize_str => deserialize_str,
        deserialize_string => deserialize_str,
        deserialize_bytes => deserialize_bytes,
        deserialize_byte_buf => deserialize_bytes,
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, D::Error> {
        Err(D::Error::custom("the type can only be read from a format that describes itself"))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_any(visitor)
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.format.deserialize_unit_struct(name, visitor)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let inside = self.place.enter::<V::Value, _>()?;
        self.format.deserialize_option(Watched { visitor, inside })
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        let inside = self.place.enter::<V::Value, _>()?;
        self.format.deserialize_newtype_struct(name, Watched { visitor, inside })
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let inside = self.place.enter::<V::Value, _>()?;
        self.format.deserialize_seq(Counted { visitor, inside })
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        let inside = self.place.enter::<V::Value, _>()?;
        if len > TUPLE_MAX {
            self.format.deserialize_tuple(len, Counted { visitor, inside })
        } else {
            self.format.deserialize_tuple(len, Watched { visitor, inside })
        }
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let inside = self.place.enter::<V::Value, _>()?;
        self.format.deserialize_tuple_struct(name, len, Watched { visitor, inside })
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let inside = self.place.enter::<V::Value, _>()?;
        self.format.deserialize_map(Counted { visitor, inside })
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let inside = self.place.enter::<V::Value, _>()?;
        self.format.deserialize_struct(name, fields, Watched { visitor, inside })
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let inside = self.place.enter::<V::Value, _>()?;
        self.format.deserialize_enum(name, variants, Watched { visitor, inside })
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.format.is_human_readable()
    }
}

/// A visitor of a value whose type says how many parts it has.
struct Watched<'a, V> {
    visitor: V,
    inside: Inside<'a>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Watched<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    #[inline]
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    #[inline]
    fn visit_some<D: Deserializer<'de>>(self, format: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Guard { format, place: self.inside.field::<V::Value>() })
    }

    #[inline]
    fn visit_newtype_struct<D: Deserializer<'de>>(self, format: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(Guard { format, place: self.inside.field::<V::Value>() })
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Fields { access, inside: self.inside })
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(Variant { access, inside: self.inside })
    }
}

/// A visitor of a collection: the bytes say how many elements it has.
struct Counted<'a, V> {
    visitor: V,
    inside: Inside<'a>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Counted<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Elements { access, inside: self.inside, paid: 0 })
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Entries { access, inside: self.inside, paid_keys: 0, paid_values: 0 })
    }
}

/// A part of a value, at its place.
struct Part<'a, S, T> {
    seed: S,
    place: Place<'a, T>,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Part<'_, S, S::Value> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, format: D) -> Result<S::Value, D::Error> {
        self.seed.deserialize(Guard { format, place: self.place })
    }
}

/// The fields of a value: its type says how many, and they lie within it.
struct Fields<'a, A> {
    access: A,
    inside: Inside<'a>,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Fields<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.access.next_element_seed(Part { seed, place: self.inside.field() })
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.access.size_hint()
    }
}

/// The elements of a collection.
struct Elements<'a, A> {
    access: A,
    inside: Inside<'a>,
    /// Bytes that are paid for each element.
    paid: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Elements<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let price = size_of::<S::Value>().max(ELEMENT_MIN);
        if price > self.paid {
            pay(self.inside.budget, self.access.size_hint(), price, &mut self.paid)?;
        }
        self.access.next_element_seed(Part { seed, place: self.inside.element()? })
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inside.budget.hint(self.access.size_hint())
    }
}

/// Pays for all elements that are announced; for each one in its turn, if none are.
fn pay<E: Error>(budget: &Budget, announced: Option<usize>, price: usize, paid: &mut usize) -> Result<(), E> {
    let Some(count) = announced else { return budget.take(1, price) };
    budget.take(count, price - *paid)?;
    *paid = price;
    Ok(())
}

/// The entries of a map.
struct Entries<'a, A> {
    access: A,
    inside: Inside<'a>,
    /// Bytes that are paid for each key.
    paid_keys: usize,
    /// Bytes that are paid for each value.
    paid_values: usize,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<'_, A> {
    type Error = A::Error;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let price = size_of::<S::Value>().max(ELEMENT_MIN);
        if price > self.paid_keys {
            pay(self.inside.budget, self.access.size_hint(), price, &mut self.paid_keys)?;
        }
        self.access.next_key_seed(Part { seed, place: self.inside.element()? })
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let price = size_of::<S::Value>();
        if price > self.paid_values {
            // The entry of this value is no longer among those to come.
            let count = self.access.size_hint().map(|count| count.saturating_add(1));
            pay(self.inside.budget, count, price, &mut self.paid_values)?;
        }
        self.access.next_value_seed(Part { seed, place: self.inside.element()? })
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inside.budget.hint(self.access.size_hint())
    }
}

/// An enum, and then its variant.
struct Variant<'a, A> {
    access: A,
    inside: Inside<'a>,
}

impl<'a, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Variant<'a, A> {
    type Error = A::Error;
    type Variant = Variant<'a, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let (name, access) = self.access.variant_seed(seed)?;
        Ok((name, Variant { access, inside: self.inside }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Variant<'_, A> {
    type Error = A::Error;

    #[inline]
    fn unit_variant(self) -> Result<(), A::Error> {
        self.access.unit_variant()
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.access.newtype_variant_seed(Part { seed, place: self.inside.field() })
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.access.tuple_variant(len, Watched { visitor, inside: self.inside })
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.access.struct_variant(fields, Watched { visitor, inside: self.inside })
    }
}
