//! Operations on a registry, and how bytes stand for them.
//!
//! What lives here: that. What does not: what an operation does (`drive`), what it may answer (`model`).
//!
//! Every input is a list of operations: numbers are taken modulo what there is, and an operation that
//! the input ends in has zeros for what is missing.

/// Lengths of tensors: nothing, little, a line of 64 bytes, more, and what not everything has room for.
pub const LENS: [usize; 5] = [0, 1, 64, 65, 200];
/// The default one, a tenant's, another one's.
pub const NAMESPACES: [&str; 3] = ["", "tenant", "other"];
/// Whose view `tenant` means.
pub const TENANT: usize = 1;
pub const NAMES: [&str; 3] = ["a", "b", "c"];
/// Longest list of operations.
const MOST: usize = 96;

/// A name: numbers of its namespace and of its part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At(pub usize, pub usize);

/// One of those that were there so far, counted from the newest.
pub type Pick = usize;

/// What a set is made of.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// A checkpoint with a tensor `w` of its own.
    Plain,
    /// An adapter on that set.
    Adapter(Pick),
    /// A checkpoint whose `w` is that set's.
    Alias(Pick),
}

#[derive(Debug, Clone, Copy)]
pub struct Made {
    pub what: What,
    pub len: usize,
    pub fill: u8,
}

/// What a compare-and-swap demands.
#[derive(Debug, Clone, Copy)]
pub enum Demand {
    Nothing,
    Current,
    Seen(Pick),
}

#[derive(Debug, Clone, Copy)]
pub enum Step {
    Publish(At, Made),
    Replace(Pick, Demand, Made),
    Retire(Pick, Demand),
    Rebind(Pick, Pick),
    RebindAll(Pick),
    Rollback(Pick),
}

/// `tenant`: through the tenant's view.
#[derive(Debug, Clone)]
pub enum Op {
    Publish {
        tenant: bool,
        at: At,
        made: Made,
    },
    Replace {
        tenant: bool,
        set: Pick,
        demand: Demand,
        made: Made,
    },
    ReplaceDrained {
        set: Pick,
        made: Made,
        fails: bool,
    },
    Retire {
        tenant: bool,
        set: Pick,
        demand: Demand,
    },
    Cascade {
        set: Pick,
    },
    Rollback {
        set: Pick,
    },
    Keep {
        set: Pick,
        n: usize,
    },
    Rebind {
        set: Pick,
        base: Pick,
    },
    Stage {
        tenant: bool,
        made: Made,
    },
    PublishStaged {
        staged: Pick,
        at: At,
    },
    ReplaceStaged {
        staged: Pick,
        set: Pick,
    },
    DropStaged {
        staged: Pick,
    },
    Acquire {
        tenant: bool,
        sets: Vec<Pick>,
        labelled: bool,
    },
    Clone {
        lease: Pick,
    },
    Release {
        lease: Pick,
    },
    ReleaseAfter {
        lease: Pick,
    },
    Signal {
        fence: Pick,
    },
    Limit {
        namespace: usize,
        lines: Option<u64>,
        sets: Option<usize>,
    },
    Transaction {
        steps: Vec<Step>,
        commit: bool,
    },
}

/// What the registry is built with.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Its limit, in lines of 64 bytes.
    pub lines: u64,
    pub keep: usize,
}

pub fn decode(input: &[u8]) -> (Setup, Vec<Op>) {
    let mut bytes = Bytes(input);
    let setup = Setup {
        lines: 1 + bytes.below(32) as u64,
        keep: bytes.below(3),
    };
    let mut ops = Vec::new();
    while !bytes.0.is_empty() && ops.len() < MOST {
        ops.push(bytes.op());
    }
    (setup, ops)
}

struct Bytes<'i>(&'i [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    fn pick(&mut self) -> Pick {
        self.below(16)
    }

    fn at(&mut self) -> At {
        let both = self.below(NAMESPACES.len() * NAMES.len());
        At(both / NAMES.len(), both % NAMES.len())
    }

    fn demand(&mut self) -> Demand {
        match self.below(8) {
            0..4 => Demand::Nothing,
            4..6 => Demand::Current,
            back => Demand::Seen(back - 5),
        }
    }

    fn made(&mut self) -> Made {
        let what = match self.below(6) {
            0..3 => What::Plain,
            3 | 4 => What::Adapter(self.pick()),
            _ => What::Alias(self.pick()),
        };
        let both = self.byte();
        Made {
            what,
            len: LENS[usize::from(both) % LENS.len()],
            fill: both,
        }
    }

    fn step(&mut self) -> Step {
        match self.below(8) {
            0 | 1 => Step::Publish(self.at(), self.made()),
            2 | 3 => Step::Replace(self.pick(), self.demand(), self.made()),
            4 => Step::Retire(self.pick(), self.demand()),
            5 => Step::Rebind(self.pick(), self.pick()),
            6 => Step::RebindAll(self.pick()),
            _ => Step::Rollback(self.pick()),
        }
    }

    fn op(&mut self) -> Op {
        let code = self.byte();
        let tenant = code & 0x80 != 0;
        match code & 0x1f {
            0..3 => Op::Publish {
                tenant,
                at: self.at(),
                made: self.made(),
            },
            3..6 => Op::Replace {
                tenant,
                set: self.pick(),
                demand: self.demand(),
                made: self.made(),
            },
            6 | 7 => Op::ReplaceDrained {
                set: self.pick(),
                made: self.made(),
                fails: tenant,
            },
            8 | 9 => Op::Retire {
                tenant,
                set: self.pick(),
                demand: self.demand(),
            },
            10 => Op::Cascade { set: self.pick() },
            11 | 12 => Op::Rollback { set: self.pick() },
            13 => Op::Keep {
                set: self.pick(),
                n: self.below(4),
            },
            14 => Op::Rebind {
                set: self.pick(),
                base: self.pick(),
            },
            15 => Op::Stage {
                tenant,
                made: self.made(),
            },
            16 => Op::PublishStaged {
                staged: self.pick(),
                at: self.at(),
            },
            17 => Op::ReplaceStaged {
                staged: self.pick(),
                set: self.pick(),
            },
            18 => Op::DropStaged {
                staged: self.pick(),
            },
            19..22 => Op::Acquire {
                tenant,
                sets: self.picks(),
                labelled: code & 0x40 != 0,
            },
            22 => Op::Clone { lease: self.pick() },
            23 | 24 => Op::Release { lease: self.pick() },
            25 => Op::ReleaseAfter { lease: self.pick() },
            26 => Op::Signal { fence: self.pick() },
            27 => self.limit(),
            _ => self.transaction(tenant),
        }
    }

    fn picks(&mut self) -> Vec<Pick> {
        let count = self.below(4);
        (0..count).map(|_| self.pick()).collect()
    }

    fn limit(&mut self) -> Op {
        let namespace = self.below(NAMESPACES.len());
        let (lines, sets) = (self.below(16) as u64, self.below(6));
        Op::Limit {
            namespace,
            lines: lines.checked_sub(1),
            sets: sets.checked_sub(1),
        }
    }

    fn transaction(&mut self, dropped: bool) -> Op {
        let count = self.below(5);
        Op::Transaction {
            steps: (0..count).map(|_| self.step()).collect(),
            commit: !dropped,
        }
    }
}
