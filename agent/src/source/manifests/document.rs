//! Text -> documents -> JSON values, with bounds that no input can pass: depth, nodes and bytes.
//!
//! A file is cut at its `---` lines first, so that a broken document does not take its neighbours with it.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Nodes and string bytes that a document may have in any case.
const BUDGET_FLOOR: usize = 65_536;
/// Nodes and string bytes that a document may have per byte of its text. Without aliases there are at most two; a few
/// aliases are fine, and a "billion laughs" ends here.
const BUDGET_PER_BYTE: usize = 4;
/// Brackets that may be open at once. They are counted before parsing, because the YAML scanner looks at each open bracket
/// again for every token (200,000 of them take a minute); the parser itself stops at a depth of 128. More than any depth,
/// because text in quotes and scripts in ConfigMaps may have brackets that are never closed, and they count.
const OPEN_MAX: usize = 1_000;

/// One document of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Document<'a> {
    /// Its text.
    pub(super) text: &'a str,
    /// The line of the file on which it begins, from 1.
    pub(super) line: usize,
}

/// Whether a line ends a YAML document (`---` or `...`, then nothing or a blank), and the length of the marker.
fn marker(line: &str) -> bool {
    let rest = line
        .strip_prefix("---")
        .or_else(|| line.strip_prefix("..."));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Cuts a YAML text into documents, without those that are blank. In YAML nothing but a marker can begin a line with `---`.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    const MARKER: usize = 3;
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let (mut at, mut line_number) = (0, 1);
    let mut push = |from: usize, to: usize, line: usize| {
        let text = &text[from..to];
        let blank = text.lines().all(|l| {
            let l = l.trim_start();
            // A document of directives only is the head of the next one.
            l.is_empty() || l.starts_with('#') || l.starts_with('%')
        });
        if !blank {
            documents.push(Document { text, line });
        }
    };
    for line in text.split_inclusive('\n') {
        if marker(line) {
            push(start, at, start_line);
            (start, start_line) = (at + MARKER, line_number);
        }
        at += line.len();
        line_number += 1;
    }
    push(start, text.len(), start_line);
    documents
}

/// Parses one YAML document.
pub(super) fn yaml(text: &str) -> Result<Value, String> {
    if is_deep(text) {
        return Err(format!("more than {OPEN_MAX} brackets are open at once"));
    }
    let budget = Budget::of(text);
    let deserializer = serde_yaml_ng::Deserializer::from_str(text);
    Bounded { budget: &budget }
        .deserialize(deserializer)
        .map_err(|error| error.to_string())
}

/// Parses a file of JSON values, one behind the other. The second is the error that ended it.
pub(super) fn json(text: &str) -> (Vec<Value>, Option<String>) {
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Unshared>() {
        match value {
            Ok(Unshared(value)) => values.push(value),
            Err(error) => return (values, Some(error.to_string())),
        }
    }
    (values, None)
}

/// Whether more brackets are open at once than [`OPEN_MAX`].
fn is_deep(text: &str) -> bool {
    let mut open = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > OPEN_MAX {
            return true;
        }
    }
    false
}

struct Budget(Cell<usize>);

impl Budget {
    fn of(text: &str) -> Self {
        Self(Cell::new(
            BUDGET_FLOOR.saturating_add(text.len().saturating_mul(BUDGET_PER_BYTE)),
        ))
    }

    fn spend<E: de::Error>(&self, cost: usize) -> Result<(), E> {
        match self.0.get().checked_sub(cost) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => Err(E::custom(
                "its aliases make the document several times larger than its text; write it out",
            )),
        }
    }
}

/// A JSON value, which cannot be larger than its text.
struct Unshared(Value);

impl<'de> Deserialize<'de> for Unshared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let budget = Budget(Cell::new(usize::MAX));
        Bounded { budget: &budget }
            .deserialize(deserializer)
            .map(Self)
    }
}

/// Builds a value, and pays for each node.
#[derive(Clone, Copy)]
struct Bounded<'b> {
    budget: &'b Budget,
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value without a tag of its own")
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Value, E> {
        self.budget.spend(1)?;
        Ok(Value::Bool(v))
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Value, E> {
        self.budget.spend(1)?;
        Ok(Value::from(v))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Value, E> {
        self.budget.spend(1)?;
        Ok(Value::from(v))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        self.budget.spend(1)?;
        Ok(Value::from(v))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Value, E> {
        self.budget.spend(1 + v.len())?;
        Ok(Value::String(v.to_owned()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.budget.spend(1)?;
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.budget.spend(1)?;
        let mut list = Vec::new();
        while let Some(value) = access.next_element_seed(self)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.budget.spend(1)?;
        let mut map = Map::new();
        while let Some(key) = access.next_key_seed(self)? {
            // YAML has keys that are no strings; kubectl takes them as it takes their text.
            let key = match key {
                Value::String(key) => key,
                key @ (Value::Number(_) | Value::Bool(_)) => key.to_string(),
                _ => return Err(de::Error::custom("a key is no text")),
            };
            let value = access.next_value_seed(self)?;
            if map.contains_key(&key) {
                return Err(de::Error::custom(format_args!(
                    "the key {key:?} stands there twice"
                )));
            }
            map.insert(key, value);
        }
        merge(&mut map);
        Ok(Value::Object(map))
    }
}

/// The merge key of YAML 1.1, which kubectl knows.
const MERGE: &str = "<<";

/// Puts the entries of `<<` beside the others, which win.
fn merge(map: &mut Map<String, Value>) {
    let sources = match map.remove(MERGE) {
        None => return,
        Some(Value::Array(sources)) => sources,
        Some(source) => vec![source],
    };
    for source in sources {
        let Value::Object(source) = source else {
            continue;
        };
        for (key, value) in source {
            map.entry(key).or_insert(value);
        }
    }
}
