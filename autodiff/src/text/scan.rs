//! Words, lists and attributes of one line.

use crate::op::{Num, PerAxis};

use super::near;

/// An answer, or what is wrong with the line.
pub(super) type Scanned<T = ()> = Result<T, String>;

/// What is left of a line.
pub(super) struct Line<'a> {
    rest: &'a str,
}

impl<'a> Line<'a> {
    /// A line without its comment.
    pub(super) fn new(line: &'a str) -> Self {
        Line {
            rest: line.split('#').next().unwrap_or_default().trim(),
        }
    }

    /// Whether nothing is left.
    pub(super) fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes `c`, if it comes next.
    pub(super) fn eat(&mut self, c: char) -> bool {
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    /// Requires `c` next.
    pub(super) fn expect(&mut self, c: char, after: &str) -> Scanned {
        if self.eat(c) {
            return Ok(());
        }
        let found = match self.rest {
            "" => "the end of the line".to_owned(),
            rest => format!("`{rest}`"),
        };
        Err(format!("expected `{c}` after {after}, found {found}"))
    }

    /// The next name or number; empty if something else comes next.
    pub(super) fn word(&mut self) -> &'a str {
        let end = self
            .rest
            .find(|c: char| !(c.is_alphanumeric() || "._-/+".contains(c)))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        word
    }

    /// A name, or what is wrong.
    pub(super) fn name(&mut self, what: &str) -> Scanned<&'a str> {
        let before = self.rest;
        match self.word() {
            "" => Err(format!("expected {what}, found `{before}`")),
            word => Ok(word),
        }
    }

    /// `[1, 2, …]`.
    pub(super) fn list(&mut self, what: &str) -> Scanned<Vec<usize>> {
        self.expect('[', what)?;
        let mut list = Vec::new();
        while !self.eat(']') {
            if !list.is_empty() {
                self.expect(',', "a number in a list")?;
            }
            list.push(count(self.name("a number or `]`")?)?);
        }
        Ok(list)
    }

    /// All that follows, as attributes of `of`.
    pub(super) fn attributes(&mut self, of: &'a str) -> Scanned<Attributes<'a>> {
        let mut items: Vec<(&str, Value)> = Vec::new();
        while !self.is_done() {
            let key = self.name("an attribute such as `stride=2`")?;
            if items.iter().any(|(k, _)| *k == key) {
                return Err(format!("`{key}` is given twice"));
            }
            let value = if !self.eat('=') {
                Value::Flag
            } else if self.rest.starts_with('[') {
                Value::List(self.list(key)?)
            } else {
                Value::Word(self.name(&format!("a value after `{key}=`"))?)
            };
            items.push((key, value));
        }
        Ok(Attributes {
            of,
            items,
            known: Vec::new(),
        })
    }
}

fn count(word: &str) -> Scanned<usize> {
    word.parse()
        .map_err(|_| format!("`{word}` is not a whole number from 0 to {}", usize::MAX))
}

/// What an attribute is given as.
enum Value<'a> {
    Flag,
    Word(&'a str),
    List(Vec<usize>),
}

impl std::fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Flag => f.write_str("nothing"),
            Value::Word(word) => write!(f, "`{word}`"),
            Value::List(list) => write!(f, "`{list:?}`"),
        }
    }
}

/// Attributes not yet asked for, and the names of those that were.
pub(super) struct Attributes<'a> {
    of: &'a str,
    items: Vec<(&'a str, Value<'a>)>,
    known: Vec<&'static str>,
}

impl<'a> Attributes<'a> {
    fn take(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.push(key);
        let at = self.items.iter().position(|(k, _)| *k == key)?;
        Some(self.items.swap_remove(at).1)
    }

    fn missing(&self, key: &str, example: &str) -> String {
        format!(
            "`{}` needs `{key}=…`, for example `{key}={example}`",
            self.of
        )
    }

    /// A word given alone.
    pub(super) fn flag(&mut self, key: &'static str) -> Scanned<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Flag) => Ok(true),
            Some(other) => Err(format!(
                "`{key}` stands alone, without a value; found {other}"
            )),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
        default: Option<T>,
    ) -> Scanned<T> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        match (self.take(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.missing(key, names.first().unwrap_or(&""))),
            (Some(value), _) => {
                let chosen = choices
                    .iter()
                    .find(|(name, _)| matches!(value, Value::Word(word) if word == *name));
                match chosen {
                    Some((_, choice)) => Ok(*choice),
                    None => Err(format!(
                        "`{key}` is one of {}; found {value}",
                        names.join(", ")
                    )),
                }
            }
        }
    }

    /// A real number.
    pub(super) fn real(&mut self, key: &'static str) -> Scanned<Num> {
        match self.take(key) {
            None => Err(self.missing(key, "0.1")),
            Some(Value::Word(word)) => match word.parse() {
                Ok(value) => Ok(Num::new(value)),
                Err(_) => Err(format!("`{key}` is a number; found `{word}`")),
            },
            Some(other) => Err(format!("`{key}` is a number; found {other}")),
        }
    }

    /// A whole number, if given.
    pub(super) fn whole<T: std::str::FromStr>(&mut self, key: &'static str) -> Scanned<Option<T>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Word(word)) => match word.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(format!("`{key}` is a whole number from 0; found `{word}`")),
            },
            Some(other) => Err(format!("`{key}` is a whole number; found {other}")),
        }
    }

    /// One number per axis, or one for all; up to `K` of them. `n` is `None`
    /// where the inputs do not say how many there should be (and will be
    /// refused anyway, with a better reason).
    fn maybe_axes<const K: usize>(
        &mut self,
        key: &'static str,
        n: Option<usize>,
        neutral: usize,
    ) -> Scanned<Option<([usize; K], usize)>> {
        let list = match self.take(key) {
            None => return Ok(None),
            Some(Value::Word(word)) => vec![count(word)?; n.unwrap_or(1).min(K)],
            Some(Value::List(list)) => list,
            Some(Value::Flag) => return Err(self.missing(key, "[1, 1]")),
        };
        match n {
            Some(n) if n != list.len() => {
                return Err(format!(
                    "`{key}` has one number for each of {n} axes; found {list:?}"
                ));
            }
            _ if list.len() > K => {
                return Err(format!("`{key}` has at most {K} numbers; found {list:?}"));
            }
            _ => {}
        }
        let values = std::array::from_fn(|i| list.get(i).copied().unwrap_or(neutral));
        Ok(Some((values, list.len())))
    }

    /// One number per axis; the neutral one if not given.
    pub(super) fn axes(
        &mut self,
        key: &'static str,
        n: Option<usize>,
        neutral: usize,
    ) -> Scanned<PerAxis> {
        Ok(self
            .maybe_axes(key, n, neutral)?
            .map_or([neutral; 3], |(values, _)| values))
    }

    /// One number per axis, and how many there are.
    pub(super) fn required_axes<const K: usize>(
        &mut self,
        key: &'static str,
        n: Option<usize>,
        neutral: usize,
    ) -> Scanned<([usize; K], usize)> {
        match self.maybe_axes(key, n, neutral)? {
            Some(found) => Ok(found),
            None => Err(self.missing(key, "[1, 1]")),
        }
    }

    /// Padding before and after: `pad` for both, or `pad_lo` and `pad_hi`.
    pub(super) fn pads(&mut self, n: Option<usize>) -> Scanned<(PerAxis, PerAxis)> {
        let both = self.maybe_axes("pad", n, 0)?;
        let lo = self.maybe_axes("pad_lo", n, 0)?;
        let hi = self.maybe_axes("pad_hi", n, 0)?;
        match (both, lo, hi) {
            (Some((both, _)), None, None) => Ok((both, both)),
            (None, lo, hi) => Ok((lo.map_or([0; 3], |(v, _)| v), hi.map_or([0; 3], |(v, _)| v))),
            (Some(_), _, _) => {
                Err("`pad` is for both sides; give either it or `pad_lo` and `pad_hi`".to_owned())
            }
        }
    }

    /// Refuses what was not asked for.
    pub(super) fn finish(self) -> Scanned {
        let Some((key, _)) = self.items.first() else {
            return Ok(());
        };
        Err(if self.known.is_empty() {
            format!("`{}` has no attributes, so no `{key}`", self.of)
        } else {
            format!(
                "`{}` has no attribute `{key}`; it has {}",
                self.of,
                self.known.join(", ")
            )
        })
    }
}

/// What a name that is not defined may have been.
pub(super) fn undefined<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    format!(
        "`{name}` is not defined above{}",
        near::hint(name, names, false)
    )
}
