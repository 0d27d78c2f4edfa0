//! Tensors in the graph of a PyTorch pickle.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::pickle::{Graph, Node, NodeId};
use crate::model::stored::{Element, StoredTensor};

/// Nesting of dictionaries that is followed.
const DEEPEST: usize = 12;

/// Nodes that are looked at, at most: a small graph can have any number of ways through it.
const MOST_VISITS: usize = 500_000;

/// Tensors, at most.
const MOST_TENSORS: usize = 100_000;

/// A storage as the pickle refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    pub(super) element: Element,
    /// Bytes of a value.
    pub(super) size: usize,
    pub(super) count: usize,
    /// Values of the storage before those that are meant.
    offset: usize,
}

/// Element type and size of a storage class.
fn storage_class(module: &str, name: &str) -> Option<(Element, usize)> {
    if !matches!(module, "torch" | "torch.cuda" | "torch.storage") {
        return None;
    }
    Some(match name {
        "FloatStorage" => (Element::F32, 4),
        "HalfStorage" => (Element::F16, 2),
        "BFloat16Storage" => (Element::Bf16, 2),
        "DoubleStorage" => (Element::F64, 8),
        "LongStorage" => (Element::Other("i64"), 8),
        "IntStorage" => (Element::Other("i32"), 4),
        "ShortStorage" => (Element::Other("i16"), 2),
        "CharStorage" => (Element::Other("i8"), 1),
        "ByteStorage" => (Element::Other("u8"), 1),
        "BoolStorage" => (Element::Other("bool"), 1),
        "ComplexFloatStorage" => (Element::Other("complex numbers"), 8),
        "ComplexDoubleStorage" => (Element::Other("complex numbers"), 16),
        "UntypedStorage" => (Element::Other("untyped bytes"), 1),
        _ => return None,
    })
}

/// Reads `('storage', class, key, location, count[, view])`.
fn storage<'a>(graph: &'a Graph<'_>, id: NodeId) -> Option<Storage<'a>> {
    let Node::Persistent(name) = graph.node(id) else { return None };
    let &[kind, class, key, _, count, ref view @ ..] = graph.sequence(*name)? else { return None };
    let (module, class) = graph.global(class)?;
    let (element, size) = storage_class(module, class).filter(|_| graph.text(kind) == Some("storage"))?;
    let offset = match view {
        [] => 0,
        [view] => match graph.node(*view) {
            Node::None => 0,
            _ => usize::try_from(graph.int(*graph.sequence(*view)?.get(1)?)?).ok()?,
        },
        _ => return None,
    };
    let count = usize::try_from(graph.int(count)?).ok()?;
    Some(Storage { key: graph.text(key)?, element, size, count, offset })
}

/// All storages of a graph by their key.
///
/// # Errors
/// Where two uses of a key disagree.
pub(super) fn storages<'a>(graph: &'a Graph<'_>) -> Result<HashMap<&'a str, Storage<'a>>, String> {
    let mut found: HashMap<&str, Storage<'_>> = HashMap::new();
    for id in graph.ids() {
        if let Some(storage) = storage(graph, id) {
            let known = found.entry(storage.key).or_insert(storage);
            if (known.element, known.count) != (storage.element, storage.count) {
                return Err(format!("storage {:?} has two sizes or types", storage.key));
            }
        }
    }
    Ok(found)
}

/// Tensors by name, and the classes of what was passed over.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) tensors: BTreeMap<String, StoredTensor>,
    pub(super) passed_over: BTreeSet<String>,
}

/// Finds all tensors below dictionaries, lists and tuples; names are their keys, joined by points. `place` says where
/// in the file the storage with a key lies.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn find(
    graph: &Graph<'_>,
    place: &dyn Fn(&Storage<'_>) -> Result<Range<usize>, String>,
) -> Result<Found, String> {
    let mut finder = Finder { graph, place, found: Found::default(), visits: 0 };
    finder.visit(graph.root(), &mut Vec::new())?;
    Ok(finder.found)
}

struct Finder<'a> {
    graph: &'a Graph<'a>,
    place: &'a dyn Fn(&Storage<'_>) -> Result<Range<usize>, String>,
    found: Found,
    visits: usize,
}

impl Finder<'_> {
    fn visit(&mut self, id: NodeId, path: &mut Vec<String>) -> Result<(), String> {
        self.visits += 1;
        if self.visits > MOST_VISITS {
            return Err(format!("it nests its dictionaries in more than {MOST_VISITS} ways"));
        }
        if path.len() > DEEPEST {
            return Ok(());
        }
        let graph = self.graph;
        match graph.node(id) {
            Node::Dict(items) => self.items(items, path),
            Node::List(items) | Node::Tuple(items) => {
                for (index, &item) in items.iter().enumerate() {
                    path.push(index.to_string());
                    self.visit(item, path)?;
                    path.pop();
                }
                Ok(())
            }
            Node::Call { function, arguments, items } => {
                let Some((module, name)) = graph.global(*function) else { return Ok(()) };
                match (module, name) {
                    ("collections", "OrderedDict" | "defaultdict") => {
                        // Some writers pass the items as a list of pairs.
                        let pairs = graph
                            .sequence(*arguments)
                            .and_then(|arguments| graph.sequence(*arguments.first()?));
                        let pairs: Vec<_> = pairs
                            .unwrap_or_default()
                            .iter()
                            .filter_map(|&pair| match graph.sequence(pair) {
                                Some(&[key, value]) => Some((key, value)),
                                _ => None,
                            })
                            .collect();
                        self.items(&pairs, path)?;
                        self.items(items, path)
                    }
                    _ => match self.rebuild(module, name, *arguments, 0)? {
                        Some(tensor) => self.insert(path, tensor),
                        None => {
                            if self.found.passed_over.len() < 20 {
                                self.found.passed_over.insert(format!("{module}.{name}"));
                            }
                            Ok(())
                        }
                    },
                }
            }
            _ => Ok(()),
        }
    }

    fn items(&mut self, items: &[(NodeId, NodeId)], path: &mut Vec<String>) -> Result<(), String> {
        for &(key, value) in items {
            let key = match (self.graph.text(key), self.graph.int(key)) {
                (Some(text), _) => text.to_owned(),
                (None, Some(number)) => number.to_string(),
                (None, None) => continue,
            };
            path.push(key);
            self.visit(value, path)?;
            path.pop();
        }
        Ok(())
    }

    fn insert(&mut self, path: &[String], tensor: StoredTensor) -> Result<(), String> {
        let name = path.join(".");
        if name.len() > 1024 {
            return Err("the name of a tensor is longer than 1024 bytes".into());
        }
        if self.found.tensors.len() >= MOST_TENSORS {
            return Err(format!("it holds more than {MOST_TENSORS} tensors"));
        }
        self.found.tensors.insert(name, tensor);
        Ok(())
    }

    /// The tensor that a call makes, if it is one of those that PyTorch writes.
    fn rebuild(
        &self,
        module: &str,
        name: &str,
        arguments: NodeId,
        depth: usize,
    ) -> Result<Option<StoredTensor>, String> {
        let graph = self.graph;
        let Some(arguments) = graph.sequence(arguments) else { return Ok(None) };
        match (module, name, arguments) {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2", &[data, offset, size, stride, ..]) => {
                self.tensor(data, offset, size, stride).map(Some)
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", &[data, ..]) => {
                match graph.node(data) {
                    Node::Call { function, arguments, .. } if depth < 2 => match graph.global(*function) {
                        Some((module, name)) => self.rebuild(module, name, *arguments, depth + 1),
                        None => Ok(None),
                    },
                    _ => Ok(None),
                }
            }
            ("torch._tensor", "_rebuild_from_type_v2", &[function, _, arguments, ..]) if depth < 2 => {
                match graph.global(function) {
                    Some((module, name)) => self.rebuild(module, name, arguments, depth + 1),
                    None => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }

    fn tensor(
        &self,
        data: NodeId,
        offset: NodeId,
        shape: NodeId,
        strides: NodeId,
    ) -> Result<StoredTensor, String> {
        let graph = self.graph;
        let wrong = || "a tensor's storage, shape or strides make no sense".to_owned();
        let number = |id: NodeId| graph.int(id).and_then(|value| usize::try_from(value).ok());
        let numbers = |id: NodeId| -> Option<Vec<usize>> {
            let id = match graph.node(id) {
                // torch.Size((1, 2))
                Node::Call { arguments, .. } => *graph.sequence(*arguments)?.first()?,
                _ => id,
            };
            graph.sequence(id).filter(|items| items.len() <= 16)?.iter().map(|&item| number(item)).collect()
        };
        let storage = storage(graph, data).ok_or_else(wrong)?;
        let shape = numbers(shape).ok_or_else(wrong)?;
        let strides = numbers(strides).filter(|strides| strides.len() == shape.len()).ok_or_else(wrong)?;
        let offset =
            number(offset).and_then(|offset| offset.checked_add(storage.offset)).ok_or_else(wrong)?;
        let place = (self.place)(&storage)?;

        let values = if shape.contains(&0) {
            Some(0)
        } else {
            shape.iter().zip(&strides).try_fold(1usize, |values, (&size, &stride)| {
                values.checked_add((size - 1).checked_mul(stride)?)
            })
        };
        let start = offset.checked_mul(storage.size).and_then(|start| start.checked_add(place.start));
        let end = values
            .and_then(|values| values.checked_mul(storage.size))
            .and_then(|bytes| bytes.checked_add(start?));
        let bytes = match (start, end) {
            (Some(start), Some(end)) if end <= place.end => start..end,
            _ => {
                return Err(format!(
                    "a tensor of shape {shape:?} is larger than its storage {:?}",
                    storage.key
                ));
            }
        };
        let strides = (!row_major(&shape, &strides)).then_some(strides);
        Ok(StoredTensor { element: storage.element, shape, bytes, strides })
    }
}

fn row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.iter().zip(strides).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == expected;
        expected = expected.saturating_mul(size);
        fits
    })
}
