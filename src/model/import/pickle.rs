//! Python pickles, taken apart without running anything.
//!
//! A pickle is a program for a stack machine that may call any function. Here calls, persistent references and class
//! names become nodes of a graph for the reader to recognise; whatever it does not recognise stays what it is, a node.

use std::collections::HashMap;
use std::ops::Range;

/// Index of a [`Node`].
pub(super) type NodeId = u32;

/// Operations of one pickle, at most. The state of a large network with its optimiser takes a tenth of this, and it bounds
/// the memory that a hostile file can ask for.
const MOST_OPERATIONS: usize = 2_000_000;

/// Longer text is no name of anything, and not kept.
const LONGEST_NAME: usize = 1024;

/// A value that a pickle builds.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// UTF-8 text that may be a name, by its place in the pickle.
    Text(Range<usize>),
    /// A number, bytes or anything else of no interest.
    Other,
    Tuple(Vec<NodeId>),
    List(Vec<NodeId>),
    Dict(Vec<(NodeId, NodeId)>),
    /// A class or function, by the places of its module and name.
    Global(Range<usize>, Range<usize>),
    /// A global called with a tuple, and the items that were then set.
    Call {
        function: NodeId,
        arguments: NodeId,
        items: Vec<(NodeId, NodeId)>,
    },
    /// What the writer stored elsewhere under this name.
    Persistent(NodeId),
}

/// The graph of one pickle.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    bytes: &'a [u8],
    nodes: Vec<Node>,
    root: NodeId,
    /// Bytes that the pickle takes.
    pub(super) length: usize,
}

impl Graph<'_> {
    pub(super) fn root(&self) -> NodeId {
        self.root
    }

    /// All nodes.
    pub(super) fn ids(&self) -> Range<NodeId> {
        0..self.nodes.len() as NodeId
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        // Ids are only made by pushing a node.
        &self.nodes[id as usize]
    }

    pub(super) fn text(&self, id: NodeId) -> Option<&str> {
        match self.node(id) {
            Node::Text(range) => std::str::from_utf8(self.bytes.get(range.clone())?).ok(),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: NodeId) -> Option<i64> {
        match self.node(id) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// Items of a tuple or list.
    pub(super) fn sequence(&self, id: NodeId) -> Option<&[NodeId]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// Module and name of a class or function.
    pub(super) fn global(&self, id: NodeId) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global(module, name) => {
                let text = |range: &Range<usize>| std::str::from_utf8(self.bytes.get(range.clone())?).ok();
                Some((text(module)?, text(name)?))
            }
            _ => None,
        }
    }
}

/// Reads the pickle that starts `bytes`.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn read(bytes: &[u8]) -> Result<Graph<'_>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    for _ in 0..MOST_OPERATIONS {
        if let Some(root) = machine.step()? {
            return Ok(Graph { bytes, nodes: machine.nodes, root, length: machine.at });
        }
    }
    Err(format!("it takes more than {MOST_OPERATIONS} operations"))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<NodeId>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, NodeId>,
}

type Step<T> = Result<T, String>;

impl Machine<'_> {
    /// Executes an operation; the result, at the end.
    fn step(&mut self) -> Step<Option<NodeId>> {
        let position = self.at;
        let operation = self.byte()?;
        match operation {
            // Protocol, frame: nothing that matters here.
            0x80 => {
                self.skip(1)?;
            }
            0x95 => {
                self.skip(8)?;
            }
            b'.' => return self.pop().map(Some),

            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(i64::from(value)));
            }
            b'K' => {
                let value = self.byte()?;
                self.push(Node::Int(i64::from(value)));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(i64::from(value)));
            }
            0x8a => {
                let length = usize::from(self.byte()?);
                self.long(length)?;
            }
            0x8b => {
                let length = self.length4()?;
                self.long(length)?;
            }
            b'G' => {
                self.skip(8)?;
                self.push(Node::Other);
            }

            b'X' | b'T' => {
                let length = self.length4()?;
                self.text(length)?;
            }
            0x8c | b'U' => {
                let length = usize::from(self.byte()?);
                self.text(length)?;
            }
            0x8d => {
                let length = self.length8()?;
                self.text(length)?;
            }
            b'B' => {
                let length = self.length4()?;
                self.opaque(length)?;
            }
            b'C' => {
                let length = usize::from(self.byte()?);
                self.opaque(length)?;
            }
            0x8e | 0x96 => {
                let length = self.length8()?;
                self.opaque(length)?;
            }

            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // As in Python: a mark counts as a value here.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.pop_to_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' | b'r' | 0x94 => {
                let key = match operation {
                    b'q' => u32::from(self.byte()?),
                    b'r' => u32::from_le_bytes(self.array()?),
                    _ => self.memo.len() as u32,
                };
                let top = self.top()?;
                self.memo.insert(key, top);
            }
            b'h' | b'j' => {
                let key = if operation == b'h' {
                    u32::from(self.byte()?)
                } else {
                    u32::from_le_bytes(self.array()?)
                };
                let value = *self.memo.get(&key).ok_or_else(|| format!("value {key} was never stored"))?;
                self.stack.push(value);
            }

            b')' => self.push(Node::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items));
            }
            0x85..=0x87 => {
                let count = usize::from(operation - 0x84);
                let start = self.stack.len().checked_sub(count).filter(|&start| start >= self.floor());
                let items = self.stack.split_off(start.ok_or("its stack is empty")?);
                self.push(Node::Tuple(items));
            }
            b']' | 0x8f => self.push(Node::List(Vec::new())),
            b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Node::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Dict(Vec::new()));
                self.set_items(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)?;
            }

            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.push(Node::Global(module, name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let node = match (&self.nodes[module as usize], &self.nodes[name as usize]) {
                    (Node::Text(module), Node::Text(name)) => Node::Global(module.clone(), name.clone()),
                    _ => return Err("a global's name is not text".into()),
                };
                self.push(node);
            }
            b'Q' => {
                let name = self.pop()?;
                self.push(Node::Persistent(name));
            }
            b'R' | 0x81 | 0x92 => {
                if operation == 0x92 {
                    // Keyword arguments.
                    self.pop()?;
                }
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push(Node::Call { function, arguments, items: Vec::new() });
            }
            // An object's state: none that is of interest has one.
            b'b' => {
                self.pop()?;
                self.top()?;
            }
            other => {
                return Err(format!(
                    "operation 0x{other:02x} at byte {position} is none that PyTorch writes"
                ));
            }
        }
        Ok(None)
    }

    fn push(&mut self, node: Node) {
        // Below `MOST_OPERATIONS`, and so within 32 bits.
        self.stack.push(self.nodes.len() as NodeId);
        self.nodes.push(node);
    }

    /// Height below which the stack belongs to whoever set the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<NodeId> {
        self.stack[self.floor()..].last().copied().ok_or_else(|| "its stack is empty".into())
    }

    fn pop(&mut self) -> Step<NodeId> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Step<Vec<NodeId>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, items: Vec<NodeId>) -> Step<()> {
        let list = self.top()?;
        match &mut self.nodes[list as usize] {
            Node::List(list) => list.extend(items),
            // A list's subclass: nothing to be found in it.
            Node::Call { .. } => {}
            _ => return Err("items are appended to what is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[NodeId]) -> Step<()> {
        let dict = self.top()?;
        let (Node::Dict(to) | Node::Call { items: to, .. }) = &mut self.nodes[dict as usize] else {
            return Err("items are set on what is no dictionary".into());
        };
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a key has no value".into()) };
        to.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn byte(&mut self) -> Step<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let (array, _) = self.bytes[self.at..].split_first_chunk().ok_or("it ends in the middle")?;
        self.at += N;
        Ok(*array)
    }

    fn length4(&mut self) -> Step<usize> {
        self.array().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn length8(&mut self) -> Step<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| "it ends in the middle".into())
    }

    fn skip(&mut self, length: usize) -> Step<Range<usize>> {
        if length > self.bytes.len() - self.at {
            return Err("it ends in the middle".into());
        }
        self.at += length;
        Ok(self.at - length..self.at)
    }

    fn text(&mut self, length: usize) -> Step<()> {
        let range = self.skip(length)?;
        let valid = length <= LONGEST_NAME && std::str::from_utf8(&self.bytes[range.clone()]).is_ok();
        self.push(if valid { Node::Text(range) } else { Node::Other });
        Ok(())
    }

    fn opaque(&mut self, length: usize) -> Step<()> {
        self.skip(length)?;
        self.push(Node::Other);
        Ok(())
    }

    /// A little-endian two's complement number of any length.
    fn long(&mut self, length: usize) -> Step<()> {
        let range = self.skip(length)?;
        let bytes = &self.bytes[range];
        let node = match bytes.last() {
            None => Node::Int(0),
            Some(last) if length <= 8 => {
                let mut eight = [if last & 0x80 == 0 { 0 } else { 0xff }; 8];
                eight[..length].copy_from_slice(bytes);
                Node::Int(i64::from_le_bytes(eight))
            }
            Some(_) => Node::Other,
        };
        self.push(node);
        Ok(())
    }

    /// The text up to the end of the line.
    fn line(&mut self) -> Step<Range<usize>> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("it ends in the middle")?;
        if length > LONGEST_NAME {
            return Err(format!("a name is longer than {LONGEST_NAME} bytes"));
        }
        let range = self.skip(length)?;
        self.skip(1)?;
        Ok(range)
    }
}
