//! What takes several calls: staging, filling, transactions.
//!
//! What lives here: these operations, on the registry and on the model. What does not: those that are one
//! call (`drive`).

use weighbridge::{Dtype, Plan, Staged};

use super::asks::Answer;
use super::content::{Content, Named, Offer};
use super::model::{self, Expect};
use super::ops::{By, NAMES, Op, When, Who};
use super::reads::Open;
use super::world::{Half, World, see};

/// What a set that is filled part by part is in the end: this many bytes, all the same.
const HALF: Offer = Offer::Plain(100, 77);

impl<'r> World<'r> {
    pub fn act_in_steps(&mut self, op: &Op) -> Option<()> {
        match *op {
            Op::Stage(by, place, offer) => self.stage(by, place, offer),
            Op::DropStaged(place) => self.drop_staged(place),
            Op::PublishStaged(by, name, place) => self.publish_staged(by, name, place),
            Op::ReplaceStaged(by, who, when, place) => self.replace_staged(by, who, when, place),
            Op::PublishElsewhere(place) => self.publish_elsewhere(place),
            Op::Fill(by, place) => self.fill(by, place),
            Op::Write(place) => self.write(place),
            Op::Seal(place) => self.seal(place),
            Op::TxPublish(name, offer) => self.tx_publish(name, offer),
            Op::TxReplace(who, when, offer) => self.tx_replace(who, when, offer),
            Op::TxRetire(who, when) => self.tx_retire(who, when),
            Op::TxCascade(who) => self.tx_cascade(who),
            Op::TxRebind(adapter, base) => self.tx_rebind(adapter, base),
            Op::TxRebindAll(base) => self.tx_rebind_all(base),
            Op::TxRollback(who) => self.tx_rollback(who),
            Op::TxCommit => self.tx_commit(),
            Op::TxDrop => {
                let (transaction, open) = self.transaction.take()?;
                drop(transaction);
                open.forget(&mut self.model);
                Some(())
            }
            ref other => unreachable!("{other:?} is one call"),
        }
    }

    pub fn drop_staged(&mut self, place: usize) -> Option<()> {
        let (_, mirror) = self.staged[place].take()?;
        self.model.let_go(&mirror);
        Some(())
    }

    fn put_staged(&mut self, place: usize, staged: Staged, mirror: model::Staged) {
        self.drop_staged(place);
        self.staged[place] = Some((staged, mirror));
    }

    fn stage(&mut self, by: By, place: usize, offer: Offer) -> Option<()> {
        let (source, content) = self.offered(offer)?;
        let account = Self::tenant(by).map(weighbridge::Account::namespace);
        let answer = match Self::tenant(by) {
            None => self.registry.stage(source),
            Some(tenant) => self.registry.namespace(tenant).unwrap().stage(source),
        };
        let expected = self
            .model
            .stage(Self::terms(by), account.as_ref(), &content, None);
        self.compare("stage", &answer, &expected);
        if let (Ok(staged), Ok(mirror)) = (answer, expected) {
            self.put_staged(place, staged, mirror);
        }
        Some(())
    }

    fn publish_staged(&mut self, by: By, name: usize, place: usize) -> Option<()> {
        let (namespace, local) = NAMES[name];
        if Self::tenant(by).is_some_and(|tenant| tenant != namespace) {
            return None;
        }
        let (staged, mirror) = self.staged[place].take()?;
        let answer = match Self::tenant(by) {
            None => self.registry.publish_staged(NAMES[name], staged),
            Some(tenant) => {
                let view = self.registry.namespace(tenant).unwrap();
                view.publish_staged(local, staged)
            }
        };
        let new = self.coming(name, answer.as_ref().ok().copied());
        let expected = self.model.publish_staged(Self::terms(by), &new, &mirror);
        self.compare("publish_staged", &answer, &expected);
        match answer {
            Ok(set) => self.met(name, set),
            Err(failed) => {
                let staged = failed.into_staged().expect("it comes back");
                self.put_staged(place, staged, mirror);
            }
        }
        Some(())
    }

    fn replace_staged(&mut self, by: By, who: Who, when: When, place: usize) -> Option<()> {
        let set = self.handle(who)?;
        let demanded = self.demanded(who, when);
        let (staged, mirror) = self.staged[place].take()?;
        let tenant = Self::tenant(by);
        let view = || self.registry.namespace(tenant.unwrap_or("")).unwrap();
        let answer = match (tenant, demanded) {
            (None, None) => self.registry.replace_staged(set, staged),
            (None, Some((now, _))) => self.registry.replace_staged_if(set, now, staged),
            (Some(_), None) => view().replace_staged(set, staged),
            (Some(_), Some((now, _))) => view().replace_staged_if(set, now, staged),
        };
        let expect = demanded.map_or(Expect::Tenant, |demanded| demanded.1);
        let expected = self
            .model
            .replace_staged(Self::terms(by), set, expect, &mirror);
        match answer {
            Ok(done) => self.replaced(
                "replace_staged",
                Ok::<_, weighbridge::Error>(done),
                expected,
            ),
            Err(failed) => {
                let (error, staged) = failed.into_parts();
                self.put_staged(place, staged.expect("it comes back"), mirror);
                self.replaced("replace_staged", Err(error), expected)
            }
        }
    }

    fn publish_elsewhere(&mut self, place: usize) -> Option<()> {
        let (staged, mirror) = self.staged[place].take()?;
        let answer = self.elsewhere.publish_staged("a", staged);
        let expected: Answer = Err("StagedElsewhere".to_owned());
        self.compare("publish elsewhere", &answer, &expected);
        let staged = answer.unwrap_err().into_staged().expect("it comes back");
        self.put_staged(place, staged, mirror);
        Some(())
    }

    fn fill(&mut self, by: By, place: usize) -> Option<()> {
        let Offer::Plain(len, _) = HALF else {
            unreachable!()
        };
        let plan = Plan::of("memory", [("w", Dtype::U8, vec![len])]).unwrap();
        let none = Named {
            base: None,
            alias: None,
        };
        let content = Content {
            again: false,
            ..Content::of(HALF, &none)
        };
        let account = Self::tenant(by).map(weighbridge::Account::namespace);
        let answer = match Self::tenant(by) {
            None => self.registry.fill(plan, None),
            Some(tenant) => self.registry.namespace(tenant).unwrap().fill(plan, None),
        };
        let expected = self.model.take(account.as_ref(), content.bytes());
        let expected = self.model.tell("stage", "memory", expected);
        self.compare("fill", &answer, &expected);
        if let (Ok(filling), Ok(body)) = (answer, expected) {
            self.drop_half(place);
            self.halves[place] = Some(Half {
                filling,
                content,
                body,
                written: 0,
            });
        }
        Some(())
    }

    pub fn drop_half(&mut self, place: usize) {
        if let Some(half) = self.halves[place].take() {
            self.model.bodies[half.body].in_hand = false;
        }
    }

    fn write(&mut self, place: usize) -> Option<()> {
        let half = self.halves[place].as_mut()?;
        let mut writer = half.filling.writer("w").unwrap();
        let bytes = &half.content.own[0].2;
        assert_eq!(writer.remaining(), bytes.len() - half.written);
        // In two parts, and never beyond the end.
        let part = &bytes[half.written..bytes.len().min(half.written + 60)];
        let beyond = vec![0; bytes.len() - half.written + 1];
        assert!(writer.write(&beyond).unwrap_err().is_malformed());
        writer.write(part).unwrap();
        half.written += part.len();
        Some(())
    }

    fn seal(&mut self, place: usize) -> Option<()> {
        let half = self.halves[place].take()?;
        let complete = half.written == half.content.own[0].2.len();
        let answer = half.filling.seal();
        let expected: Answer = match complete {
            true => Ok(()),
            false => Err("InvalidTensor w".to_owned()),
        };
        self.compare("seal", &answer, &expected);
        match answer {
            Ok(staged) => {
                let mirror = model::Staged {
                    identity: self.model.identity(&half.content),
                    content: half.content,
                    body: half.body,
                };
                self.put_staged(place, staged, mirror);
            }
            Err(failed) => {
                let filling = failed.into_filling();
                self.halves[place] = Some(Half { filling, ..half });
            }
        }
        Some(())
    }

    /// The open transaction is taken out, or one is begun; whoever takes it puts it back.
    fn take_transaction(&mut self) -> (weighbridge::Transaction<'r>, Open) {
        let open = self.transaction.take();
        open.unwrap_or_else(|| (self.registry.transaction(), Open::default()))
    }

    /// Stages for the transaction.
    fn tx_stage(&mut self, offer: Offer) -> Option<(Staged, model::Staged)> {
        let (source, content) = self.offered(offer)?;
        let (transaction, open) = self.take_transaction();
        let answer = transaction.stage(source);
        let expected = open.stage(&mut self.model, &content);
        self.compare("stage in a transaction", &answer, &expected);
        self.transaction = Some((transaction, open));
        Some((answer.ok()?, expected.ok()?))
    }

    fn tx_publish(&mut self, name: usize, offer: Offer) -> Option<()> {
        let (staged, mirror) = self.tx_stage(offer)?;
        let (mut transaction, mut open) = self.take_transaction();
        let answer = transaction.publish(NAMES[name], staged);
        let new = self.coming(name, answer.as_ref().ok().copied());
        let expected = open.publish(&mut self.model, &new, mirror);
        self.compare("publish in a transaction", &answer, &expected);
        if let Ok(set) = answer {
            self.met(name, set);
        }
        self.transaction = Some((transaction, open));
        Some(())
    }

    fn tx_replace(&mut self, who: Who, when: When, offer: Offer) -> Option<()> {
        let set = self.handle(who)?;
        let demanded = self.demanded(who, when);
        let (staged, mirror) = self.tx_stage(offer)?;
        let (mut transaction, mut open) = self.take_transaction();
        let answer = match demanded {
            None => transaction.replace(set, staged),
            Some((now, _)) => transaction.replace_if(set, now, staged),
        };
        let expect = demanded.map_or(Expect::Tenant, |demanded| demanded.1);
        let expected = open.replace(&mut self.model, set, expect, mirror);
        self.compare("replace in a transaction", &answer, &expected);
        self.transaction = Some((transaction, open));
        Some(())
    }

    fn tx_retire(&mut self, who: Who, when: When) -> Option<()> {
        let set = self.handle(who)?;
        let demanded = self.demanded(who, when);
        let (mut transaction, mut open) = self.take_transaction();
        let answer = match demanded {
            None => transaction.retire(set),
            Some((now, _)) => transaction.retire_if(set, now),
        };
        let expect = demanded.map_or(Expect::Tenant, |demanded| demanded.1);
        let expected = open.retire(&mut self.model, set, expect);
        self.compare("retire in a transaction", &answer, &expected);
        self.transaction = Some((transaction, open));
        Some(())
    }

    fn tx_cascade(&mut self, who: Who) -> Option<()> {
        let set = self.handle(who)?;
        let (mut transaction, mut open) = self.take_transaction();
        let answer = transaction.retire_cascade(set);
        let expected = open.cascade(&mut self.model, set);
        self.compare("cascade in a transaction", &answer, &expected);
        self.transaction = Some((transaction, open));
        Some(())
    }

    fn tx_rebind(&mut self, adapter: Who, base: Who) -> Option<()> {
        let (adapter, base) = (self.handle(adapter)?, self.handle(base)?);
        let (mut transaction, mut open) = self.take_transaction();
        let answer = transaction.rebind(adapter, base);
        let expected = open.rebind(&mut self.model, adapter, base);
        self.compare("rebind in a transaction", &answer, &expected);
        self.transaction = Some((transaction, open));
        Some(())
    }

    fn tx_rebind_all(&mut self, base: Who) -> Option<()> {
        let base = self.handle(base)?;
        let (mut transaction, mut open) = self.take_transaction();
        let answer = transaction.rebind_adapters(base);
        let expected = open.rebind_all(&mut self.model, base);
        self.compare("rebind_adapters", &answer, &expected);
        assert_eq!(answer.ok(), expected.ok());
        self.transaction = Some((transaction, open));
        Some(())
    }

    fn tx_rollback(&mut self, who: Who) -> Option<()> {
        let set = self.handle(who)?;
        let (mut transaction, mut open) = self.take_transaction();
        let answer = transaction.rollback(set);
        let expected = open.rollback(&mut self.model, set);
        self.compare("rollback in a transaction", &answer, &expected);
        self.transaction = Some((transaction, open));
        Some(())
    }

    pub fn tx_commit(&mut self) -> Option<()> {
        let (transaction, open) = self.transaction.take()?;
        let steps = open.steps.clone();
        let staged = |step: &model::Step| match &step.act {
            model::Act::Become(staged) => Some(staged.identity.clone()),
            _ => None,
        };
        let staged: Vec<String> = steps.iter().filter_map(staged).collect();
        let going: Vec<(bool, bool)> = steps
            .iter()
            .map(|step| {
                let whole = matches!(step.act, model::Act::Retire);
                (whole, whole && self.keeps(self.model.sets[step.set].handle))
            })
            .collect();
        let answer = transaction.commit();
        let expected = open.commit(&mut self.model);
        let blamed = answer.as_ref().err().map(|failed| failed.step());
        self.compare(
            "commit",
            &answer,
            &expected.as_ref().map_err(|(_, why)| why.clone()),
        );
        let to_blame = expected.as_ref().err().map(|refused| refused.0);
        assert_eq!(
            blamed, to_blame,
            "the step to blame (left), and the model's"
        );
        see(format!("commit of {}", steps.len().min(4)));
        match (answer, expected) {
            (Ok(done), Ok(previous)) => {
                assert_eq!(done.generation.number(), self.model.commits);
                let new = steps.iter().filter(|step| step.expect == Expect::Vacant);
                let new: Vec<_> = new.map(|step| self.model.sets[step.set].handle).collect();
                assert_eq!(done.published, new);
                let before = previous.into_iter().zip(going);
                let before: Vec<_> = before
                    .filter_map(|(node, how)| Some((node?, how)))
                    .collect();
                assert_eq!(done.previous.len(), before.len());
                for (retirement, (node, (whole, kept))) in done.previous.into_iter().zip(before) {
                    self.goes(retirement, node, whole, kept);
                }
            }
            (Err(failed), _) => {
                let back = failed.into_staged();
                let back: Vec<String> = back.iter().map(|one| one.identity().to_string()).collect();
                assert_eq!(back, staged, "what was staged does not come back as it was");
            }
            _ => unreachable!("they were compared"),
        }
        Some(())
    }
}
