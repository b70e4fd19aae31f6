#pragma once

#include <memory>
#include <type_traits>

namespace pixleap {

template <typename Signature>
class FunctionRef;

// A non-owning reference to something callable: two words, no allocation, passed by value. The
// callable must outlive the reference, so use it for parameters only; a lambda written in the
// argument list lives long enough.
//
// static_cast instead of std::forward: at -O0 the latter leaves weak symbols behind, which files
// compiled for one ISA must not have.
template <typename R, typename... Args>
class FunctionRef<R(Args...)> {
 public:
  template <typename F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef> &&
             !std::is_function_v<std::remove_reference_t<F>> &&
             std::is_invocable_r_v<R, F&, Args...>)
  FunctionRef(F&& callable) noexcept  // NOLINT(google-explicit-constructor): meant to convert
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(callable)))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(static_cast<Args&&>(args)...);
        }) {}

  // Plain functions have no object address; the pointer itself is what gets carried.
  FunctionRef(R (*function)(Args...)) noexcept  // NOLINT(google-explicit-constructor)
      : object_(reinterpret_cast<void*>(function)), call_([](void* object, Args... args) -> R {
          return reinterpret_cast<R (*)(Args...)>(object)(static_cast<Args&&>(args)...);
        }) {}

  R operator()(Args... args) const { return call_(object_, static_cast<Args&&>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

}  // namespace pixleap
